"""Batches of ImageNet as it streams, and of prepared files that are damaged."""

import dataclasses
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from helpers.data_batches import assert_same, joined, section, take
from urnet_jax.data.batches import eval_batches, train_batches
from urnet_jax.data.sources import open_split
from urnet_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
TFDS = ROOT.parent / "shared" / "data" / "tfds"


def prepared(name):
    missing = not (TFDS / name).is_dir()
    return pytest.mark.skipif(missing, reason=f"no prepared {name} in ../shared/data/tfds")


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


@prepared("imagenet2012")
def test_imagenet_training_sees_each_image_once_an_epoch():
    data = imagenet()
    split = open_split(data, "train")
    assert (split.num_examples, split.num_classes, split.image_shape) == (150, 1000, (64, 64, 3))
    batches = take(iter(train_batches(split, data, seed=0)), 6)
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
    split = open_split(data, "train")
    batches = iter(train_batches(split, data, seed=0))
    first = take(batches, 1)
    state = batches.get_state()
    second = take(batches, 1)

    serial = iter(train_batches(split, imagenet(threads=1), seed=0))
    assert_same(take(serial, 1), first)
    serial.set_state(state)
    assert_same(take(serial, 1), second)
    half = train_batches(split, data, seed=0, process_index=1, process_count=2)
    assert_same(take(iter(half), 1), [{key: value[25:] for key, value in first[0].items()}])


@prepared("imagenet2012")
def test_imagenet_without_augmentation_is_seen_as_in_evaluation():
    data = imagenet(augment="none")
    split = open_split(data, "train")
    batch = next(iter(train_batches(split, data, seed=0)))
    in_order = joined(list(eval_batches(split, data, 75)), "image")
    np.testing.assert_array_equal(batch["image"], in_order[batch["index"]])
    with pytest.raises(UserError, match="data.augment is 'crop'"):
        train_batches(split, imagenet(augment="crop"), seed=0)


@prepared("imagenet2012")
def test_imagenet_evaluation_counts_each_image_once():
    data = imagenet()
    split = open_split(data, "test")
    batches = list(eval_batches(split, data, 16))
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
    message = (
        rf"Image \d+ \(record \d+ of {records.name}\) of the split '{name} train' cannot be read "
        r"\(.*: prepare"
    )
    with pytest.raises(UserError, match=message):
        next(eval_batches(open_split(data, "train"), data, 50))


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
    split = open_split(data, "test")
    split = dataclasses.replace(split, source=Truncated(split.source))
    with pytest.raises(
        UserError,
        match=r"Image 7 \(n\S+\.JPEG\) of the split 'imagenet2012 test' cannot be decoded",
    ):
        next(eval_batches(split, data, 20))


WORKERS_SCRIPT = """
import json, sys
import numpy as np
from configs import digits
from urnet_jax.data.batches import train_batches
from urnet_jax.data.sources import open_split


if __name__ == "__main__":
    data_dir, host, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    data = digits.get_config().data
    data.update(name="imagenet2012", dir=data_dir, image_size=64, batch_size=50,
                augment="random_resized_crop", workers=2)

    def batches():
        split = open_split(data, "train")
        return iter(train_batches(
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
    expected = take(iter(train_batches(open_split(data, "train"), data, seed=0)), 6)
    together = [
        {k: np.concatenate([host[f"{k}{i}"] for host in hosts]) for k in expected[0]}
        for i in range(6)
    ]
    assert_same(together, expected)
    # Three batches are an epoch of the 150 images; the run was stopped within the first.
    for epoch in (together[:3], together[3:]):
        np.testing.assert_array_equal(np.sort(joined(epoch, "index")), np.arange(150))
