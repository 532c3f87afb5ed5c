import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import grain
import hypothesis
import hypothesis.strategies as st
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from configs import digits
from urnet_jax import data as data_lib
from urnet_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
TFDS = ROOT.parent / "shared" / "data" / "tfds"


def prepared(name):
    missing = not (TFDS / name).is_dir()
    return pytest.mark.skipif(missing, reason=f"no prepared {name} in ../shared/data/tfds")


def section(**fields) -> Any:
    data: Any = digits.get_config().data
    data.update(fields)
    return data


def imagenet(**fields) -> Any:
    defaults = {
        "name": "imagenet2012",
        "dir": str(TFDS),
        "image_size": 64,
        "batch_size": 50,
        "augment": "random_resized_crop",
        "threads": 2,
    }
    return section(**defaults | fields)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def training(split, seed=0, **processes):
    return iter(data_lib.train_batches(split, section(), seed=seed, **processes))


def joined(batches, key):
    return np.concatenate([batch[key] for batch in batches])


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for one, other in zip(batches, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@pytest.fixture(scope="module")
def train():
    return data_lib.open_split(section(), "train")


@pytest.fixture(scope="module")
def test():
    return data_lib.open_split(section(), "test")


def test_each_epoch_sees_every_example_once_in_a_new_order(train):
    batches = take(training(train, seed=3), 70)
    assert all(b["image"].shape == (64, 8, 8, 1) for b in batches)
    epoch, index = joined(batches, "epoch"), joined(batches, "index")
    np.testing.assert_array_equal(epoch, np.arange(70 * 64) // 1437)
    orders = [index[epoch == e] for e in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1437))
    assert (orders[0] != orders[1]).mean() > 0.9
    assert (orders[1] != orders[2]).mean() > 0.9
    np.testing.assert_array_equal(joined(batches, "image"), train.images[index])
    np.testing.assert_array_equal(joined(batches, "label"), train.labels[index])
    types = {key: value.dtype for key, value in batches[0].items()}
    assert types == {"image": np.uint8, "label": np.int32, "index": np.int64, "epoch": np.int32}


def test_the_order_depends_on_the_seed_alone(train):
    first = take(training(train, seed=3), 2)
    again = take(iter(data_lib.train_batches(train, section(threads=1), seed=3)), 2)
    other = take(training(train, seed=4), 2)
    assert_same(again, first)
    assert (joined(first, "index") != joined(other, "index")).mean() > 0.9


def test_a_batch_may_be_larger_than_the_split(test):
    batch = next(iter(data_lib.train_batches(test, section(batch_size=800), seed=0)))
    assert np.bincount(batch["epoch"]).tolist() == [360, 360, 80]


def test_an_iterator_resumes_from_its_state_in_mid_epoch(train):
    batches = training(train)
    take(batches, 10)
    state = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, 30)

    resumed = training(train)
    next(resumed)  # a state also replaces a position that was already taken up
    resumed.set_state(state)
    assert_same(take(resumed, 30), expected)
    batches.set_state(state)
    assert_same(take(batches, 30), expected)


def test_an_iterator_resumes_from_an_orbax_checkpoint(train, tmp_path):
    batches = training(train)
    take(batches, 25)
    with ocp.CheckpointManager(tmp_path, item_names=("data",)) as manager:
        manager.save(0, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(batches)))
    expected = take(batches, 30)

    resumed = training(train)
    with ocp.CheckpointManager(tmp_path, item_names=("data",)) as manager:
        restore = ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(resumed))
        manager.restore(0, args=restore)
    assert_same(take(resumed, 30), expected)


@pytest.mark.parametrize("process_count", [2, 4, 64])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(train, process_count):
    alone = take(training(train), 30)
    shares = [
        take(training(train, process_index=k, process_count=process_count), 30)
        for k in range(process_count)
    ]
    for step, batch in enumerate(alone):
        for key in batch:
            together = np.concatenate([share[step][key] for share in shares])
            np.testing.assert_array_equal(together, batch[key])


@hypothesis.given(local=st.integers(1, 400), process_count=st.integers(1, 4))
@hypothesis.settings(deadline=None, max_examples=40)
def test_evaluation_counts_each_example_once(test, local, process_count):
    shares = [
        list(data_lib.eval_batches(test, section(), local * process_count, k, process_count))
        for k in range(process_count)
    ]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for step in zip(*shares, strict=True) for batch in step]
    assert all(len(value) == local for batch in batches for value in batch.values())
    mask = joined(batches, "mask")
    np.testing.assert_array_equal(joined(batches, "index")[mask], np.arange(360))
    np.testing.assert_array_equal(joined(batches, "image")[mask], test.images)
    np.testing.assert_array_equal(joined(batches, "label")[mask], test.labels)
    assert not joined(batches, "image")[~mask].any()
    assert (joined(batches, "index")[~mask] == -1).all()


def test_processes_that_cannot_share_a_batch_are_an_error(train, test):
    with pytest.raises(UserError, match="data.batch_size is 64; .* multiple of 3"):
        data_lib.train_batches(train, section(), seed=0, process_count=3)
    with pytest.raises(UserError, match="batch size is 0; expected a positive"):
        data_lib.eval_batches(test, section(), 0)


def test_an_augmentation_that_does_not_suit_the_dataset_is_an_error(train):
    with pytest.raises(UserError, match="'random_resized_crop'; .* none, crop, crop_flip"):
        data_lib.train_batches(train, section(augment="random_resized_crop"), seed=0)


@prepared("imagenet2012")
def test_imagenet_training_sees_each_image_once_an_epoch():
    data = imagenet()
    split = data_lib.open_split(data, "train")
    assert (split.num_examples, split.num_classes, split.image_shape) == (150, 1000, (64, 64, 3))
    batches = take(iter(data_lib.train_batches(split, data, seed=0)), 6)
    assert all(b["image"].shape == (50, 64, 64, 3) for b in batches)
    for epoch in (batches[:3], batches[3:]):
        np.testing.assert_array_equal(np.sort(joined(epoch, "index")), np.arange(150))
        assert len(np.unique(joined(epoch, "label"))) > 100
    first, second = (
        joined(epoch, "image")[np.argsort(joined(epoch, "index"))]
        for epoch in (batches[:3], batches[3:])
    )
    assert (first != second).any(axis=(1, 2, 3)).all()


@prepared("imagenet2012")
def test_imagenet_crops_do_not_depend_on_threads_processes_or_restarts():
    data = imagenet()
    split = data_lib.open_split(data, "train")
    batches = iter(data_lib.train_batches(split, data, seed=0))
    first = take(batches, 1)
    state = batches.get_state()
    second = take(batches, 1)

    serial = iter(data_lib.train_batches(split, imagenet(threads=1), seed=0))
    assert_same(take(serial, 1), first)
    serial.set_state(state)
    assert_same(take(serial, 1), second)
    half = data_lib.train_batches(split, data, seed=0, process_index=1, process_count=2)
    assert_same(take(iter(half), 1), [{key: value[25:] for key, value in first[0].items()}])


@prepared("imagenet2012")
def test_imagenet_without_augmentation_is_seen_as_in_evaluation():
    data = imagenet(augment="none")
    split = data_lib.open_split(data, "train")
    batch = next(iter(data_lib.train_batches(split, data, seed=0)))
    in_order = joined(list(data_lib.eval_batches(split, data, 75)), "image")
    np.testing.assert_array_equal(batch["image"], in_order[batch["index"]])
    with pytest.raises(UserError, match="data.augment is 'crop'"):
        data_lib.train_batches(split, imagenet(augment="crop"), seed=0)


@prepared("imagenet2012")
def test_imagenet_evaluation_counts_each_image_once():
    data = imagenet()
    split = data_lib.open_split(data, "test")
    batches = list(data_lib.eval_batches(split, data, 16))
    assert [b["image"].shape for b in batches] == [(16, 64, 64, 3)] * 4
    assert [int(b["mask"].sum()) for b in batches] == [16, 16, 16, 2]
    mask = joined(batches, "mask")
    np.testing.assert_array_equal(joined(batches, "index")[mask], np.arange(50))
    assert joined(batches, "image")[mask].any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=prepared(name)) for name in ("cifar10", "imagenet2012")]
)
def test_a_damaged_file_is_an_error(tmp_path, name):
    shutil.copytree(TFDS / name, tmp_path / name)
    (records,) = (tmp_path / name).rglob("*train.array_record*")
    content = bytearray(records.read_bytes())
    content[2000:3000] = bytes(1000)
    records.write_bytes(content)
    data = imagenet(name=name, dir=str(tmp_path), augment="none")
    with pytest.raises(UserError, match=f"split '{name} train' cannot be read .*: prepare"):
        next(data_lib.eval_batches(data_lib.open_split(data, "train"), data, 50))


@prepared("imagenet2012")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_damaged_image_is_named(threads):
    class Truncated:
        def __init__(self, source):
            self.source = source

        def __getitems__(self, rows):
            records = self.source.__getitems__(rows)
            for row, record in zip(rows, records, strict=True):
                if row == 7:
                    record["image"] = record["image"][:5000]
            return records

    data = imagenet(threads=threads)
    split = data_lib.open_split(data, "test")
    split = dataclasses.replace(split, source=Truncated(split.source))
    with pytest.raises(UserError, match="Image 7 of the split 'imagenet2012 test' cannot be read"):
        next(data_lib.eval_batches(split, data, 20))


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Any:
    """The section `data` of what the script in docs/own_data.md makes of a folder of digits."""
    folder = tmp_path_factory.mktemp("own")
    bunch: Any = load_digits()
    for i in range(60):
        split = "train" if i < 40 else "test"
        path = folder / "images" / split / f"digit {bunch.target[i]}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(bunch.images[i].astype(np.uint8)).save(path)
    (folder / "images" / "train" / "digit 0" / "notes.txt").touch()
    document = (ROOT / "docs" / "own_data.md").read_text()
    (script,) = re.findall("```python\n(.*?)```", document, re.DOTALL)
    (folder / "prepare.py").write_text(script)
    command = [sys.executable, "prepare.py", "images", "tfds", "mydigits"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "mydigits has 10 classes.", done.stderr
    return section(name="mydigits", num_classes=10, dir=str(folder / "tfds"), batch_size=30)


def test_own_data_is_trained_and_evaluated_on(own):
    bunch: Any = load_digits()
    digit = {image.astype(np.uint8).tobytes(): k for k, image in enumerate(bunch.images)}
    train, test = (data_lib.open_split(own, split) for split in ("train", "test"))
    assert (train.num_examples, test.num_examples, train.num_classes) == (40, 20, 10)
    batches = take(iter(data_lib.train_batches(train, own, seed=0)), 4)
    found = [digit[image[..., 0].tobytes()] for image in joined(batches, "image")]
    assert sorted(found) == sorted([*range(40)] * 3)
    assert joined(batches, "label").tolist() == bunch.target[found].tolist()
    (batch,) = data_lib.eval_batches(test, own, 20)
    found = [digit[image[..., 0].tobytes()] for image in batch["image"]]
    assert sorted(found) == list(range(40, 60))
    assert batch["label"].tolist() == bunch.target[found].tolist()


def test_own_data_is_cropped_at_random_as_it_streams(own):
    whole: Any = data_lib.open_split(own, "train")
    data = own.copy_and_resolve_references()
    data.update(augment="random_resized_crop", image_size=7)
    split = data_lib.open_split(data, "train")
    batches = take(iter(data_lib.train_batches(split, data, seed=0)), 4)
    index, image = joined(batches, "index"), joined(batches, "image")
    assert image.shape == (120, 7, 7, 3)
    np.testing.assert_array_equal(np.bincount(index), [3] * 40)
    np.testing.assert_array_equal(joined(batches, "label"), whole.labels[index])
    first, second = (image[np.argsort(index, kind="stable")][k::3] for k in (0, 1))
    assert (first != second).any(axis=(1, 2, 3)).all()
    # The shorter side of 8 becomes 7 * 256 / 224 = 8, of whose centre 7 pixels are cropped.
    (batch,) = data_lib.eval_batches(split, data, 40)
    np.testing.assert_array_equal(batch["image"], whole.images[:, :7, :7])
    with pytest.raises(UserError, match="opened with another, its images resized: open it again"):
        data_lib.train_batches(whole, data, seed=0)


WORKERS_SCRIPT = """
import json, sys
import numpy as np
from configs import digits
from urnet_jax import data as data_lib

if __name__ == "__main__":
    data_dir, host, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    data = digits.get_config().data
    data.update(name="imagenet2012", dir=data_dir, image_size=64, batch_size=50,
                augment="random_resized_crop", workers=2)

    def batches():
        split = data_lib.open_split(data, "train")
        return iter(data_lib.train_batches(
            split, data, seed=0, process_index=host, process_count=2))

    stopped = batches()
    loaded = [next(stopped)]
    state = json.dumps(stopped.get_state())
    next(stopped)  # Seen, and lost with the process.
    stopped.close()
    data.workers = 1
    resumed = batches()
    resumed.set_state(json.loads(state))
    loaded += [next(resumed) for _ in range(5)]
    resumed.close()
    np.savez(out, **{f"{k}{i}": v for i, b in enumerate(loaded) for k, v in b.items()})
"""


@pytest.mark.slow
@prepared("imagenet2012")
def test_workers_of_two_hosts_resume_in_mid_epoch_and_see_each_image_once(tmp_path):
    (tmp_path / "script.py").write_text(WORKERS_SCRIPT)
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    hosts = []
    for host in "01":
        out = tmp_path / f"host{host}.npz"
        arguments = [sys.executable, tmp_path / "script.py", TFDS, host, out]
        subprocess.run(arguments, check=True, timeout=120, env=environment)
        with np.load(out) as loaded:
            hosts.append(dict(loaded))

    data = imagenet(workers=0)
    expected = take(
        iter(data_lib.train_batches(data_lib.open_split(data, "train"), data, seed=0)), 6
    )
    together = [
        {k: np.concatenate([host[f"{k}{i}"] for host in hosts]) for k in expected[0]}
        for i in range(6)
    ]
    assert_same(together, expected)
    # Three batches are an epoch of the 150 images; the run was stopped within the first.
    for epoch in (together[:3], together[3:]):
        np.testing.assert_array_equal(np.sort(joined(epoch, "index")), np.arange(150))
