"""Runs on disk, compared as a whole or in parts."""

import json
import pathlib
import shutil

import jax
import numpy as np

from urnet_jax.runs import checkpoint
from urnet_jax.runs.checkpoint import Checkpointer
from urnet_jax.runs.meta import Meta
from urnet_jax.train import state
from urnet_jax.train.interruption import AskedToStop
from urnet_jax.train.state import TrainState
from urnet_jax.xla import sharding

MESH = sharding.make_mesh()


def newest(workdir: pathlib.Path) -> Meta:
    meta = checkpoint.newest_meta(workdir)
    assert meta is not None
    return meta


def newest_state(workdir: pathlib.Path) -> TrainState:
    meta = newest(workdir)
    checkpointer = Checkpointer(workdir)
    where = sharding.replicated(MESH)
    abstract = state.abstract_state(meta.config, meta.phase, meta.steps_per_epoch, where)
    restored = checkpointer.restore_state(meta.step, abstract)
    checkpointer.close()
    return restored


def assert_identical(found, expected) -> None:
    jax.tree.map_with_path(
        lambda path, a, b: np.testing.assert_array_equal(a, b, jax.tree_util.keystr(path)),
        found,
        expected,
    )


def lines(workdir: pathlib.Path, kind: str) -> list[dict]:
    """The lines of one kind without what no two runs share, their speed."""
    every = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in every:
        line.pop("images_per_s", None)
    return [line for line in every if line["kind"] == kind]


def saved_steps(workdir: pathlib.Path) -> list[int]:
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def roll_back(workdir: pathlib.Path, step: int) -> None:
    """Leaves a workdir as a kill would have left it after the checkpoint at `step`."""
    assert step in saved_steps(workdir)
    for later in saved_steps(workdir):
        if later > step:
            shutil.rmtree(workdir / "checkpoints" / str(later))


def assert_same_run(found: pathlib.Path, expected: pathlib.Path) -> None:
    assert_identical(newest_state(found), newest_state(expected))
    assert newest(found) == newest(expected)
    assert saved_steps(found) == saved_steps(expected)
    assert lines(found, "train") == lines(expected, "train")
    assert lines(found, "eval") == lines(expected, "eval")


def stop_after(step: int) -> AskedToStop:
    """Stops a run after its step `step`, as SIGTERM would."""
    return lambda at: "SIGTERM" if at >= step else ""
