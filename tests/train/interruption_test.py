"""Runs that are stopped, locked out, diverge, or find the disk full; all for real."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from helpers.train_runs import (
    assert_identical,
    assert_same_run,
    lines,
    newest,
    newest_state,
    saved_steps,
    stop_after,
)  # fmt: skip
from urnet_jax.errors import Stopped, UserError
from urnet_jax.runs import checkpoint
from urnet_jax.runs.load import load_network
from urnet_jax.train import loop

STEPS = 29


def test_stopped_after_every_step_and_started_again_equals_uninterrupted(finished, tiny, tmp_path):
    workdir = tmp_path / "run"
    for step in range(1, STEPS + 1):
        with pytest.raises(Stopped) as stopped:
            loop.train_and_evaluate(tiny(), workdir, asked_to_stop=stop_after(step))
        assert str(stopped.value) == (
            f"SIGTERM: stopped after step {step} and saved; the same command goes on."
        )
        assert (stopped.value.exit_code, newest(workdir).step) == (75, step)
    loop.train_and_evaluate(tiny(), workdir)
    assert newest(workdir) == newest(finished)
    assert_identical(newest_state(workdir), newest_state(finished))
    assert saved_steps(workdir) == saved_steps(finished)
    assert lines(workdir, "eval") == lines(finished, "eval")


@pytest.mark.parametrize("step", [1, 8, 10, 11, 12, 18, 28, 29])
def test_stopped_once_a_run_ends_as_uninterrupted(step, finished, tiny, tmp_path):
    """In the middle, where it saves, where it evaluates, and at the ends of phases."""
    with pytest.raises(Stopped):
        loop.train_and_evaluate(tiny(), tmp_path, asked_to_stop=stop_after(step))
    loop.train_and_evaluate(tiny(), tmp_path)
    if step in (1, 12):  # There no line was due.
        assert_identical(newest_state(tmp_path), newest_state(finished))
        assert newest(tmp_path) == newest(finished)
        assert lines(tmp_path, "eval") == lines(finished, "eval")
    else:
        assert_same_run(tmp_path, finished)


BEST = {"gates.epochs": 0.0, "joint.epochs": 0.0, "checkpoint.keep": 1, "checkpoint.keep_best": 1}


@pytest.fixture(scope="module")
def with_best(tiny, tmp_path_factory) -> pathlib.Path:
    """A run of 11 steps, evaluated at 4, 8 and 11, that keeps its newest and its best."""
    workdir = tmp_path_factory.mktemp("with_best")
    loop.train_and_evaluate(tiny(BEST), workdir)
    return workdir


@pytest.mark.parametrize("step", [4, 8, 11])
def test_a_stop_where_the_run_evaluates_leaves_the_best_checkpoint_the_best(
    step, with_best, tiny, tmp_path
):
    with pytest.raises(Stopped):
        loop.train_and_evaluate(tiny(BEST), tmp_path, asked_to_stop=stop_after(step))
    assert newest(tmp_path).top1_percent is None
    loop.train_and_evaluate(tiny(BEST), tmp_path)
    assert saved_steps(tmp_path) == saved_steps(with_best)
    assert load_network(tmp_path, "best").meta == load_network(with_best, "best").meta
    assert_same_run(tmp_path, with_best)


def test_a_checkpoint_that_only_the_stop_made_is_not_a_candidate_for_the_best(tiny, tmp_path):
    """Evaluated at 4 and 8, saved at the end alone: the run without the stop has no such one."""
    fields = BEST | {"checkpoint.every_epochs": 0.0, "checkpoint.keep": 2}
    with pytest.raises(Stopped):
        loop.train_and_evaluate(tiny(fields), tmp_path, asked_to_stop=stop_after(8))
    loop.train_and_evaluate(tiny(fields), tmp_path)
    assert checkpoint.read_meta(tmp_path, 8).top1_percent is None
    assert load_network(tmp_path, "best").meta.step == 11
    assert [line["step"] for line in lines(tmp_path, "eval")] == [4, 8, 11]


def wait_for_checkpoint(workdir: pathlib.Path, process: subprocess.Popen[str]) -> None:
    while not checkpoint.steps(workdir):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_stops_the_command_which_saves_and_goes_on(
    name, code, start, tiny, tiny_flags, finished, tmp_path
):
    workdir = tmp_path / "run"
    with start("train.py", "--workdir=run", *tiny_flags, cwd=tmp_path) as process:
        wait_for_checkpoint(workdir, process)
        process.send_signal(signal.Signals[name])
        _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    step = newest(workdir).step
    sentences = [
        "Stopping after this step and saving; once more stops at once.",
        f"{name}: stopped after step {step} and saved; the same command goes on.",
    ]
    assert [line for line in errors.splitlines() if line in sentences] == sentences
    assert "Traceback" not in errors
    loop.train_and_evaluate(tiny(), workdir)
    assert_identical(newest_state(workdir), newest_state(finished))
    assert lines(workdir, "eval") == lines(finished, "eval")


def test_killed_and_started_again_equals_uninterrupted(finished, start, tiny, tiny_flags, tmp_path):
    workdir = tmp_path / "run"
    with start("train.py", "--workdir=run", *tiny_flags, cwd=tmp_path) as process:
        wait_for_checkpoint(workdir, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert newest(workdir).step < STEPS
    loop.train_and_evaluate(tiny(), workdir)
    assert_same_run(workdir, finished)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"28", "29"}


TWICE = """
import sys, time
from urnet_jax.train import interruption

with interruption.watched() as asked_to_stop:
    print("watching", flush=True)
    while not asked_to_stop(1):
        # As every real step does, it lets go of Python now and then: in a loop that never does,
        # CPython can miss a signal that another thread is given, and never look again.
        time.sleep(0.001)
    print(asked_to_stop(1), flush=True)
    sys.stdin.read()
"""


def test_a_second_ctrl_c_ends_the_process_at_once():
    with subprocess.Popen(
        [sys.executable, "-c", TWICE], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "SIGINT\n"
        process.send_signal(signal.SIGINT)
        process.wait(timeout=300)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 130, errors
    assert "Interrupted: the same command goes on from the last checkpoint, if any.\n" in errors


def test_a_second_run_in_a_workdir_is_refused(start, tiny_flags, tmp_path):
    # The first run does not end before it is killed.
    endless = [*tiny_flags, "--config.pretrain.epochs=1e4"]
    with start("train.py", "--workdir=run", *endless, cwd=tmp_path) as first:
        wait_for_checkpoint(tmp_path / "run", first)
        with start("train.py", "--workdir=run", *tiny_flags, cwd=tmp_path) as second:
            printed, errors = second.communicate(timeout=300)
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


def said_of_the_disk(errors: str) -> str:
    """The one sentence for users; threads of the native writer may print on the same line."""
    (sentence,) = re.findall(
        r"error: (.+ cannot be written .+ goes on from the last checkpoint\."
        r"|.+ cannot be written .+ goes on from the checkpoint before\.)",
        errors,
    )
    return sentence


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
    sentence = said_of_the_disk(done.stderr)
    assert sentence.startswith("The checkpoint of step 3")
    assert "File too large" in sentence
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
    assert "No space left on device" in said_of_the_disk(done.stderr)
    whole = checkpoint.steps(tmp_path / "kept")
    assert whole
    for step in whole:
        checkpoint.check_files(tmp_path / "kept", step)
    loop.train_and_evaluate(tiny(), tmp_path / "kept")
    assert checkpoint.steps(tmp_path / "kept")[-1] == 29


def test_what_cannot_be_written_at_the_start_is_one_sentence(start, tiny_flags, tmp_path):
    (tmp_path / "run" / "config.json").mkdir(parents=True)
    with start("train.py", "--workdir=run", *tiny_flags, cwd=tmp_path) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "config.json cannot be written (Is a directory)" in errors
    assert errors.count("\n") == 1
