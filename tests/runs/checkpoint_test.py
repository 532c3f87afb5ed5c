"""Which checkpoints are kept, and what is read of them."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import pytest

from urnet_jax.errors import UserError
from urnet_jax.runs import checkpoint, checksums, writers
from urnet_jax.runs.checkpoint import Checkpointer
from urnet_jax.runs.load import load_network
from urnet_jax.runs.meta import Meta
from urnet_jax.train import loop, state


def test_a_checkpoint_needs_no_checksums(workdir, newest):
    (newest / "checksums.json").unlink()
    assert load_network(workdir)[0].step == 29


def test_the_newest_are_kept(finished):
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["28", "29"]


def test_the_best_is_kept_too_and_evaluated(tiny, tmp_path):
    fields = {"checkpoint.keep": 1, "checkpoint.keep_best": 1, "eval.every_epochs": 0.1}
    fields |= {"gates.epochs": 0.0, "joint.epochs": 0.0, "pretrain.learning_rate": 0.3}
    loop.train_and_evaluate(tiny(fields), tmp_path)
    scores = {
        line["step"]: line["top1_percent"]
        for line in writers.read(tmp_path)
        if line["kind"] == "eval"
    }
    assert set(scores) == {2, 4, 6, 8, 10, 11}
    best = max(scores, key=lambda step: (scores[step], step))
    assert checkpoint.steps(tmp_path) == sorted({best, 11})
    cases: Any = (("best", best), (best, best), ("newest", 11))
    for which, step in cases:
        meta = load_network(tmp_path, which)[0]
        assert (meta.step, meta.top1_percent) == (step, scores[step])
    with pytest.raises(UserError, match=r"holds no checkpoint 3; it holds the steps \d+"):
        load_network(tmp_path, 3)


def test_the_best_is_of_the_latest_phase(workdir):
    metas = [checkpoint.read_meta(workdir, step) for step in (28, 29)]
    plain = dataclasses.replace(metas[0], phase="pretrain", top1_percent=99.0)
    joint = dataclasses.replace(metas[0], phase="joint", top1_percent=1.0)
    assert plain.score is not None and joint.score is not None and joint.score > plain.score
    assert dataclasses.replace(plain, top1_percent=None).score is None


def test_a_run_without_evaluated_checkpoints_has_no_best(workdir):
    for step in checkpoint.steps(workdir):
        file = workdir / "checkpoints" / str(step) / "meta" / "metadata"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"top1_percent": None}))
    with pytest.raises(UserError, match="holds the steps 28, 29, none evaluated"):
        load_network(workdir, "best")


def test_meta_tells_of_the_run(finished, tiny):
    meta = checkpoint.newest_meta(finished)
    assert meta is not None
    assert (meta.step, meta.phase, meta.phase_step, meta.phase_steps) == (29, "joint", 11, 11)
    assert meta.steps_per_epoch == 1437 / 64
    assert meta.config == tiny()


def save(workdir: pathlib.Path, config: Any, *steps: int, keep: int, keep_best: int) -> None:
    """Checkpoints of one number, none of them evaluated."""
    state = {"weight": jnp.ones(3)}
    with contextlib.closing(Checkpointer(workdir, keep=keep, keep_best=keep_best)) as checkpointer:
        for step in steps:
            checkpointer.save(state, Meta(step, "joint", step, 99, 2.5, config))


def test_a_score_that_comes_later_is_kept_in_the_checkpoint(tiny, tmp_path):
    save(tmp_path, tiny(), 1, 2, 3, keep=3, keep_best=1)
    (tmp_path / "checkpoints" / "3" / "checksums.json").unlink()
    with contextlib.closing(Checkpointer(tmp_path, keep=3, keep_best=1)) as checkpointer:
        for step, top1 in ((1, 12.5), (2, 50.0), (3, 25.0)):
            checkpointer.add_score(step, top1)
    for step, top1 in ((1, 12.5), (2, 50.0), (3, 25.0)):
        checkpoint.check_files(tmp_path, step)
        expected = Meta(step, "joint", step, 99, 2.5, tiny(), top1)
        assert checkpoint.read_meta(tmp_path, step) == expected
    # The next save keeps the newest, and of the others the best.
    save(tmp_path, tiny(), 4, keep=1, keep_best=1)
    assert checkpoint.steps(tmp_path) == [2, 4]


def test_a_score_counts_for_the_checkpointer_that_it_was_given_to(tiny, tmp_path):
    save(tmp_path, tiny(), 1, 2, keep=2, keep_best=1)
    with contextlib.closing(Checkpointer(tmp_path, keep=1, keep_best=1)) as checkpointer:
        checkpointer.add_score(1, 50.0)
        checkpointer.save({"weight": jnp.ones(3)}, Meta(3, "joint", 3, 99, 2.5, tiny()))
    assert checkpoint.steps(tmp_path) == [1, 3]


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_checkpoint_is_whole_wherever_a_score_is_cut_short(writes, tiny, tmp_path, monkeypatch):
    save(tmp_path, tiny(), 1, keep=1, keep_best=0)
    fsync, done = os.fsync, []

    def full(descriptor: int) -> None:
        if len(done) == writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done.append(fsync(descriptor))

    with contextlib.closing(Checkpointer(tmp_path, keep=1)) as checkpointer:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"meta/metadata cannot be written \(No space left"):
            checkpointer.add_score(1, 50.0)
        monkeypatch.undo()
        checkpoint.check_files(tmp_path, 1)
        top1_percent = checkpoint.read_meta(tmp_path, 1).top1_percent
        assert top1_percent == (50.0 if writes == 2 else None)
        checkpointer.add_score(1, 25.0)
    checkpoint.check_files(tmp_path, 1)
    sums = json.loads((tmp_path / "checkpoints" / "1" / "checksums.json").read_text())
    assert "meta/metadata" in sums
    assert checkpoint.read_meta(tmp_path, 1).top1_percent == 25.0


def test_what_is_not_there_gets_no_score(tiny, tmp_path):
    save(tmp_path, tiny(), 1, keep=1, keep_best=0)
    with contextlib.closing(Checkpointer(tmp_path, keep=1)) as checkpointer:
        with pytest.raises(UserError, match="checkpoints/2 cannot be read"):
            checkpointer.add_score(2, 50.0)


def test_a_checkpoint_counts_only_once_its_checksums_are_written(workdir, newest, monkeypatch):
    meta = checkpoint.read_meta(workdir, int(newest.name))
    abstract = state.abstract_state(meta.config, meta.phase, meta.steps_per_epoch)
    seen, write = [], checksums.write

    def watched(folder):
        seen.append((folder.name, checkpoint.steps(workdir)))
        write(folder)

    monkeypatch.setattr(checksums, "write", watched)
    with contextlib.closing(Checkpointer(workdir, keep=2)) as checkpointer:
        network = checkpointer.restore_state(meta.step, abstract)
        checkpointer.save(network, dataclasses.replace(meta, step=meta.step + 1))
    ((name, before),) = seen
    assert name.startswith(f"{meta.step + 1}.orbax-checkpoint-tmp")
    assert meta.step + 1 not in before
    folder = newest.with_name(str(meta.step + 1))
    recorded = json.loads((folder / "checksums.json").read_text())
    held = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert held - set(recorded) <= {
        "checksums.json", "_CHECKPOINT_METADATA", "commit_success.txt",
    }  # fmt: skip
    checkpoint.check_files(workdir, meta.step + 1)
