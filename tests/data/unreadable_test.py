"""Images that cannot be decoded: an error that names them, or left out and counted."""

import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.data_batches import assert_same, joined, section, take
from helpers.own_data import encoded, prepare
from urnet_jax.data import splits
from urnet_jax.data.batches import eval_batches, train_batches
from urnet_jax.data.sources import open_split
from urnet_jax.errors import UserError

BAD = {3: b"no image", 4: encoded(Image.new("F", (8, 8)), "TIFF")}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Twenty images a split, of which digits 3 and 4 cannot be decoded."""
    folder = tmp_path_factory.mktemp("tfds")
    prepare(folder, "mydigits", {"train": 20, "test": 20}, named=True, files=BAD)
    prepare(folder, "whole", {"train": 20, "test": 20}, named=True)
    prepare(folder, "nothing", {"train": 3}, files={i: b"no image" for i in range(3)})
    return folder


def data(data_dir, name="mydigits", **fields) -> Any:
    return section(
        name=name, num_classes=10, dir=str(data_dir), **{"unreadable": "skip", **fields}
    )  # fmt: skip


def streaming(data_dir, **fields) -> Any:
    return data(
        data_dir, **{"augment": "random_resized_crop", "batch_size": 10, "threads": 2, **fields}
    )  # fmt: skip


def bad_numbers(data_dir, split) -> list[int]:
    """Where digits 3 and 4 lie in a split, as TFDS has shuffled it."""
    source = open_split(streaming(data_dir), split).source
    names = [record["file_name"] for record in source.__getitems__(list(range(20)))]
    return sorted(names.index(f"digits/{i}.png".encode()) for i in BAD)


@pytest.mark.parametrize("augment", ["none", "random_resized_crop"])
def test_an_image_that_cannot_be_decoded_is_an_error_that_names_it(data_dir, augment):
    settings = data(data_dir, augment=augment, unreadable="error", batch_size=20)
    message = (
        r"Image \d+ \(digits/[34].png\) of the split 'mydigits train' cannot be decoded \((it is in"
        r" no format that PIL knows|its pixels are floats.*)\): mend .* data.unreadable='skip'"
    )
    with pytest.raises(UserError, match=message):
        next(eval_batches(open_split(settings, "train"), settings, 20))
    if augment != "none":
        with pytest.raises(UserError, match=message):
            next(iter(train_batches(open_split(settings, "train"), settings, seed=0)))


def test_without_a_name_the_record_is_named(data_dir):
    with pytest.raises(
        UserError,
        match=r"Image 0 \(record 0 of nothing-train.array_record-00000-of-00001\) of the split",
    ):
        open_split(data(data_dir, "nothing", unreadable="error"), "train")


def test_in_memory_they_are_left_out_and_the_others_keep_their_numbers(data_dir, capsys):
    bad = bad_numbers(data_dir, "train")
    settings = data(data_dir, batch_size=6)
    split: Any = open_split(settings, "train")
    errors = capsys.readouterr().err
    assert (
        "2 of the 20 images of the split 'mydigits train' cannot be decoded and are left" in errors
    )
    assert re.search(rf"the first: Image {bad[0]} \(digits/[34].png\)", errors)
    assert split.num_examples == 18
    assert split.numbers.tolist() == [i for i in range(20) if i not in bad]
    whole: Any = open_split(data(data_dir, "whole"), "train")
    np.testing.assert_array_equal(split.images, whole.images[split.numbers])
    np.testing.assert_array_equal(split.labels, whole.labels[split.numbers])
    batches = take(iter(train_batches(split, settings, seed=0)), 3)
    index = joined(batches, "index")
    assert sorted(index) == split.numbers.tolist()
    np.testing.assert_array_equal(joined(batches, "image"), whole.images[index])
    with pytest.raises(UserError, match="No image of the split 'nothing train' can be decoded"):
        open_split(data(data_dir, "nothing"), "train")


def test_in_training_the_next_one_takes_its_place(data_dir, capsys):
    settings, bad = streaming(data_dir), bad_numbers(data_dir, "train")
    split, whole = (open_split(streaming(data_dir, name=n), "train") for n in ("mydigits", "whole"))
    batches = iter(train_batches(split, settings, seed=1))
    got = take(batches, 6)
    expected = take(iter(train_batches(whole, streaming(data_dir, name="whole"), seed=1)), 6)
    for batch, other in zip(got, expected, strict=True):
        index = other["index"].copy()
        for _ in bad:  # Two may follow one another.
            index = np.where(np.isin(index, bad), (index + 1) % 20, index)
        np.testing.assert_array_equal(batch["index"], index)
        same = batch["index"] == other["index"]
        np.testing.assert_array_equal(batch["image"][same], other["image"][same])
        assert batch["image"].any(axis=(1, 2, 3)).all()
    labels = splits.take(whole, np.arange(20)).labels
    assert labels is not None
    np.testing.assert_array_equal(joined(got, "label"), labels[joined(got, "index")])
    batches.close()
    errors = capsys.readouterr().err
    for number in bad:
        assert len(re.findall(rf"Image {number} \(digits/[34].png\)", errors)) == 1
    assert "2 different images of the split 'mydigits train' could not be decoded" in errors


def test_replacements_do_not_depend_on_threads_processes_or_restarts(data_dir):
    settings = streaming(data_dir)
    split = open_split(settings, "train")
    batches = iter(train_batches(split, settings, seed=1))
    first = take(batches, 3)
    state = json.loads(json.dumps(batches.get_state()))
    second = take(batches, 3)
    resumed = iter(train_batches(split, streaming(data_dir, threads=1), seed=1))
    resumed.set_state(state)
    assert_same(take(resumed, 3), second)
    shares = [
        take(iter(train_batches(split, settings, seed=1, process_index=k, process_count=2)), 3)
        for k in range(2)
    ]
    for step, batch in enumerate(first):
        for key in batch:
            together = np.concatenate([share[step][key] for share in shares])
            np.testing.assert_array_equal(together, batch[key])


def test_in_evaluation_they_do_not_count(data_dir, capsys):
    settings, bad = streaming(data_dir), bad_numbers(data_dir, "test")
    split = open_split(settings, "test")
    batches = list(eval_batches(split, settings, 8))
    index, mask = joined(batches, "index"), joined(batches, "mask")
    np.testing.assert_array_equal(index, [*range(20), *[-1] * 4])
    assert np.flatnonzero(~mask).tolist() == [*bad, 20, 21, 22, 23]
    assert (joined(batches, "label")[~mask] == -1).all()
    assert not joined(batches, "image")[~mask].any()
    whole = list(eval_batches(open_split(streaming(data_dir, name="whole"), "test"), settings, 8))
    for key in ("image", "label"):
        np.testing.assert_array_equal(joined(batches, key)[mask], joined(whole, key)[mask])
    errors = capsys.readouterr().err
    assert errors.count("2 of the 20 images of the split 'mydigits test' cannot be decoded") == 1
    some = splits.take(split, np.array([0, *bad, 19]))
    assert some.numbers is not None and some.numbers.tolist() == [0, 19]


def test_a_split_of_which_nothing_can_be_decoded_is_an_error(data_dir):
    settings = streaming(data_dir, name="nothing")
    batches = iter(train_batches(open_split(settings, "train"), settings, seed=0))
    with pytest.raises(UserError, match="More than 100 images in a row cannot be decoded; the"):
        next(batches)
