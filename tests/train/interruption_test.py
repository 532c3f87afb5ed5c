"""Runs that are stopped, locked out, diverge, or find the disk full; all for real."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from urnet_jax.errors import UserError
from urnet_jax.runs import checkpoint, writers
from urnet_jax.runs.load import load_network
from urnet_jax.train import loop


def wait_for_checkpoint(workdir: pathlib.Path, process: subprocess.Popen[str]) -> None:
    while not checkpoint.steps(workdir):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def assert_same_network(found: pathlib.Path, expected: pathlib.Path) -> None:
    one, other = (load_network(workdir) for workdir in (found, expected))
    assert one[0] == other[0]
    jax.tree.map(np.testing.assert_array_equal, one[1:], other[1:])


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_run_that_is_told_to_stop_saves_and_goes_on(
    name, code, start, tiny_flags, finished, tmp_path
):
    workdir = tmp_path / "run"
    with start("train.py", "--workdir=run", *tiny_flags, cwd=tmp_path) as process:
        wait_for_checkpoint(workdir, process)
        process.send_signal(signal.Signals[name])
        _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    step = checkpoint.steps(workdir)[-1]
    assert errors.splitlines() == [
        "",
        "Stopping after this step and saving; once more stops at once.",
        "",
        f"{name}: stopped after step {step} and saved; the same command goes on.",
    ]
    with start("train.py", "--workdir=run", *tiny_flags, cwd=tmp_path) as process:
        printed, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, "")
    assert printed.startswith(f"Going on from step {step}: ")
    assert_same_network(workdir, finished)
    scores = [
        [(line["step"], line["scale"], line["correct"]) for line in writers.read(run)
         if line["kind"] == "eval"] for run in (workdir, finished)
    ]  # fmt: skip
    assert scores[0] == scores[1]


def test_a_second_ctrl_c_stops_at_once(start, tiny_flags, tmp_path):
    with start("train.py", "--workdir=run", *tiny_flags, cwd=tmp_path) as process:
        while not (tmp_path / "run" / "config.json").exists():  # Before the step is compiled.
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.endswith(
        "Interrupted: the same command goes on from the last checkpoint, if any.\n"
    )


def test_a_second_run_in_a_workdir_is_refused(start, tiny_flags, tmp_path):
    with start("train.py", "--workdir=run", *tiny_flags, cwd=tmp_path) as first:
        wait_for_checkpoint(tmp_path / "run", first)
        with start("train.py", "--workdir=run", *tiny_flags, cwd=tmp_path) as second:
            printed, errors = second.communicate(timeout=60)
        assert first.poll() is None
        first.kill()
    assert (second.returncode, printed) == (2, "")
    assert errors == (
        "error: Another run is at work in the workdir run: wait for its end, stop it, or choose "
        "another --workdir.\n"
    )


@pytest.mark.parametrize("phase", ["pretrain", "joint"])
def test_a_loss_that_is_not_finite_stops_the_run(phase, finished, tiny, tmp_path):
    workdir = tmp_path / "run"
    fields = {f"{phase}.learning_rate": 1e30, f"{phase}.clip_norm": 0.0}
    if phase == "joint":
        shutil.copytree(finished, workdir)
        for step in (28, 29):
            shutil.rmtree(workdir / "checkpoints" / str(step))
        loop.train_and_evaluate(tiny({"joint.epochs": 0.0}), workdir)
    before = checkpoint.newest_meta(workdir)
    with pytest.raises(UserError) as error:
        loop.train_and_evaluate(tiny(fields), workdir)
    first = 0 if before is None else before.step
    said = str(error.value)
    steps = [n for n in range(1, 4) if f"at step {first + n}, step {n} of phase {phase}" in said]
    assert len(steps) == 1, said
    # Of step 1 loss and gradient are finite, and only what the step made is not.
    assert said.startswith("The state norm is inf")
    assert said.endswith(
        f": lower {phase}.learning_rate or set {phase}.clip_norm; the checkpoints are of steps "
        "before."
    )
    assert checkpoint.newest_meta(workdir) == before
    if before is not None:
        checkpoint.check_files(workdir, before.step)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
sys.argv = sys.argv[1:]
from urnet_jax.cli import train as cli
cli.main()
"""


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tiny_flags, finished, tmp_path, tiny):
    """The largest file that may be written is smaller than the network."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "train.py", f"--workdir={workdir}", *tiny_flags,
         "--config.joint.epochs=1.0"],
        capture_output=True, text=True, timeout=240,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},  # it would be cut short too
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert sentence.startswith("error: The checkpoint of step 3")
    assert "File too large" in sentence
    assert sentence.endswith("the same command then goes on from the checkpoint before.")
    meta = checkpoint.newest_meta(workdir)
    assert meta is not None and meta.step == 29
    loop.train_and_evaluate(tiny({"joint.epochs": 1.0}), workdir)
    assert checkpoint.steps(workdir)[-1] == 40


FULL = """
mount -t tmpfs -o size=5m tmpfs disk || exit 77
"$0" "$@"
code=$?
df --output=avail disk | tail -1 >&2
cp -r disk/run kept
exit $code
"""


def test_a_full_disk_ends_the_run_and_the_checkpoints_before_are_whole(tiny_flags, tiny, tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("a file system of a few megabytes needs unshare")
    (tmp_path / "disk").mkdir()
    train = pathlib.Path(__file__).resolve().parents[2] / "train.py"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", FULL, sys.executable, train, "--workdir=disk/run",
         *tiny_flags, "--config.checkpoint.keep=100"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    if done.returncode in (1, 77) and "ermi" in done.stderr:
        pytest.skip("a file system of a few megabytes needs the right to mount it")
    assert done.returncode == 2, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "cannot be written" in sentence and "No space left on device" in sentence
    whole = checkpoint.steps(tmp_path / "kept")
    assert whole
    for step in whole:
        checkpoint.check_files(tmp_path / "kept", step)
    loop.train_and_evaluate(tiny(), tmp_path / "kept")
    assert checkpoint.steps(tmp_path / "kept")[-1] == 29


def test_what_cannot_be_written_at_the_start_is_one_sentence(start, tiny_flags, tmp_path):
    (tmp_path / "run" / "config.json").mkdir(parents=True)
    with start("train.py", "--workdir=run", *tiny_flags, cwd=tmp_path) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "config.json cannot be written (Is a directory)" in errors
    assert errors.count("\n") == 1
