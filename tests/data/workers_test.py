"""Decoding processes: they end with their parent, and leave nothing behind."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from helpers.own_data import prepare

ROOT = pathlib.Path(__file__).parents[2]

SCRIPT = """
import contextlib, os, pathlib, sys
from configs import digits
from urnet_jax.data.batches import train_batches
from urnet_jax.data.sources import open_split

if __name__ == "__main__":
    data = digits.get_config().data
    data.update(name="mydigits", num_classes=10, dir=sys.argv[1], batch_size=10, image_size=8,
                augment="random_resized_crop", workers=2)
    split = open_split(data, "train")
    with contextlib.closing(iter(train_batches(split, data, seed=0))) as batches:
        kept = [next(batches) for _ in range(int(sys.argv[2]))]
        print("loaded", flush=True)
        sys.stdin.read()
"""


def start(tmp_path, data_dir, batches) -> Any:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, script, data_dir, str(batches)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def workers(pid: int) -> list[int]:
    """The processes that `pid` has started to decode."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and "spawn_main" in (path / "cmdline").read_text():
                found.append(int(path.name))
        except OSError:  # It has ended meanwhile.
            continue
    return found


def alive(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # Whoever adopts it may not have asked for its exit status.


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    prepare(data_dir, "mydigits", {"train": 40})
    return data_dir


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(own, tmp_path):
    with start(tmp_path, own, 3) as process:
        assert process.stdout.readline() == "loaded\n"
        found = workers(process.pid)
        assert len(found) == 2
        process.kill()
        process.wait(30)
        for _ in range(600):
            if not any(map(alive, found)):
                break
            time.sleep(0.1)
        assert not any(map(alive, found))


@pytest.mark.slow
@pytest.mark.parametrize("batches", [1, 5])
def test_workers_leave_signals_to_their_parent_and_leak_nothing(own, tmp_path, batches):
    with start(tmp_path, own, batches) as process:
        assert process.stdout.readline() == "loaded\n"
        # Schedulers send SIGTERM to all processes of a run, terminals SIGINT.
        for worker in workers(process.pid):
            os.kill(worker, signal.SIGTERM)
            os.kill(worker, signal.SIGINT)
        _, errors = process.communicate("", timeout=300)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.slow
def test_an_image_that_cannot_be_decoded_leaks_nothing(own, tmp_path):
    prepare(tmp_path, "mydigits", {"train": 40}, files={7: b"no image"})
    with start(tmp_path, tmp_path, 5) as process:
        _, errors = process.communicate("", timeout=300)
    assert process.returncode == 1
    assert "cannot be decoded (it is in no format that PIL knows)" in errors
    assert "leaked" not in errors and "Exception ignored" not in errors
