import pathlib
import time
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs import digits
from urnet_jax import sources
from urnet_jax.errors import UserError

TFDS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "tfds"


def section(**fields) -> Any:
    data: Any = digits.get_config().data
    data.update(fields)
    return data


def opened(split, **fields) -> Any:
    return sources.open_split(section(**fields), split)


def test_digits_are_split_once_and_for_all():
    train, test = opened("train"), opened("test")
    assert (train.num_examples, test.num_examples) == (1437, 360)
    assert train.num_classes == 10
    assert train.image_shape == test.image_shape == (8, 8, 1)
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int32)
    everything = np.concatenate([train.images, test.images]).reshape(1797, -1)
    # 16 grey levels become multiples of about 15.94, so the published values come back exactly.
    published = np.rint(everything * (16 / 255))
    bunch: Any = load_digits()
    want = bunch.data
    np.testing.assert_array_equal(published[np.lexsort(published.T)], want[np.lexsort(want.T)])
    assert everything.max() == 255
    counts = np.bincount(test.labels)
    assert counts.min() >= 35 and counts.max() <= 37
    # If this moves, scikit-learn splits in another way and old accuracies cannot be compared.
    assert test.labels[:8].tolist() == [7, 6, 3, 7, 7, 3, 2, 8]


def test_digits_are_resized_to_the_image_size():
    train, larger = opened("train"), opened("train", image_size=16)
    assert larger.image_shape == (16, 16, 1)
    assert abs(larger.images.mean() - train.images.mean()) < 2


def test_unknown_names_are_errors():
    with pytest.raises(UserError, match="'mnist'; expected one of digits, cifar10"):
        opened("train", name="mnist")
    with pytest.raises(UserError, match="'val'; expected 'train' or 'test'"):
        opened("val")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet2012"])
def test_a_missing_directory_is_an_error_at_once(name, tmp_path):
    start = time.monotonic()
    for folder in ("", str(tmp_path), str(tmp_path / "absent"), "~/no such folder"):
        with pytest.raises(UserError) as error:
            opened("train", name=name, dir=folder)
        message = str(error.value)
        assert "data.dir" in message and f"holds {name}/" in message and "tfds build" in message
        assert folder in message and "\n" not in message
    assert time.monotonic() - start < 5  # the network would be waited for, for minutes


@pytest.mark.parametrize(
    ("info", "files", "message"),
    [
        ("{", 1, "dataset_info.json is damaged"),
        ("[]", 1, "dataset_info.json is damaged"),
        ('{"fileFormat": "tfrecord", "splits": []}', 1, "holds tfrecord files"),
        ('{"fileFormat": "array_record", "splits": []}', 0, "lists no"),
        (
            '{"fileFormat": "array_record", '
            '"splits": [{"name": "train", "shardLengths": ["5", "5"]}]}',
            1,
            "holds 1 files of the split 'train' where its dataset_info.json lists 2",
        ),
    ],
)
def test_an_unprepared_directory_is_an_error(tmp_path, info, files, message):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(info)
    for i in range(files):
        (folder / f"cifar10-train.array_record-{i:05}-of-00002").touch()
    with pytest.raises(UserError, match=message) as error:
        opened("train", name="cifar10", dir=str(tmp_path))
    assert str(folder) in str(error.value) and "tfds build cifar10" in str(error.value)


@pytest.mark.skipif(
    not (TFDS / "cifar10").is_dir(), reason="no prepared cifar10 in ../shared/data/tfds"
)
def test_cifar10_is_decoded_as_tfds_decodes_it():
    import tensorflow_datasets as tfds

    split = opened("test", name="cifar10", dir=str(TFDS), image_size=32)
    assert (split.num_examples, split.num_classes, split.image_shape) == (10000, 10, (32, 32, 3))
    assert np.bincount(split.labels).tolist() == [1000] * 10
    source: Any = tfds.data_source("cifar10", data_dir=TFDS, split="test", download=False)
    for i in (0, 1, 1000, 9999):
        np.testing.assert_array_equal(split.images[i], source[i]["image"])
        assert split.labels[i] == source[i]["label"]
