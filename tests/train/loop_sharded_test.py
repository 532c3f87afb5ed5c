"""One small training run on other numbers of devices and processes, each a process of its own."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = [
    "--config=digits", "--workdir=run", "--config.model.depth=8", "--config.pretrain.epochs=0",
    "--config.gates.epochs=0", "--config.joint.epochs=0.9", "--config.eval.scales=0.2,1.0",
    "--config.eval.every_epochs=0", "--config.log.every_steps=1",
    "--config.checkpoint.every_epochs=0.45",
    # Sums round otherwise on other numbers of devices. A gate that is a hard step, and a long step
    # of the optimiser, would make much of little.
    "--config.gate.sigmoid_probability=1.0", "--config.scale.usage=gate",
    "--config.joint.learning_rate=0.001",
    # Adam's steps would not tell a gradient from one that is a number of devices times too large.
    "--config.joint.gate_optimizer=sgd", "--config.joint.gate_learning_rate_factor=10",
]  # fmt: skip
STEPS, SAVED = 20, 10


def start(folder: pathlib.Path, devices: int = 1, *arguments: str) -> subprocess.Popen[str]:
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *FLAGS, *arguments],
        cwd=folder, env=os.environ | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def start_two(folder: pathlib.Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """Two processes with two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    together = ["--distributed", f"--coordinator={address}", "--num_processes=2", *arguments]
    return [start(folder, 2, *together, f"--process_id={k}") for k in range(2)]


def finish(process: subprocess.Popen[str], expected: int = 0) -> tuple[str, str]:
    with process:
        printed, errors = process.communicate(timeout=240)
    assert process.returncode == expected, printed + errors
    return printed, errors


def wait_for_checkpoint(folder: pathlib.Path, *processes: subprocess.Popen[str]) -> None:
    while not (folder / "run" / "checkpoints" / str(SAVED) / "checksums.json").exists():
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def results(folder: pathlib.Path) -> tuple[list[float], list[tuple]]:
    """The loss of every step, and what the last evaluation counted at each S."""
    text = (folder / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    counts = ("scale", "examples", "correct", "blocks_mean", "blocks_min", "blocks_max")
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    assert list(losses) == list(range(1, STEPS + 1))
    evaluated = [line for line in lines if line["kind"] == "eval" and line["step"] == STEPS]
    return list(losses.values()), [tuple(line[name] for name in counts) for line in evaluated]


def assert_same(folder: pathlib.Path, expected: pathlib.Path) -> None:
    (losses, counts), (expected_losses, expected_counts) = results(folder), results(expected)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert counts == expected_counts and len(counts) == 2


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> pathlib.Path:
    """One process with one device, never interrupted."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_share_the_batch(devices: int, alone: pathlib.Path, tmp_path: pathlib.Path):
    finish(start(tmp_path, devices))
    assert_same(tmp_path, alone)


@pytest.mark.slow
def test_processes_share_the_batch_and_one_of_them_writes(alone, tmp_path):
    outputs = [finish(process) for process in start_two(tmp_path)]
    assert_same(tmp_path, alone)
    # Gloo, XLA's own library, says on stdout whom it found; its threads' line ends may go astray.
    own = [
        [line for line in printed.splitlines() if line and not line.startswith("[Gloo]")]
        for printed, _ in outputs
    ]
    assert any("After phase joint" in line for line in own[0]) and not own[1]


@pytest.mark.slow
def test_three_phases_in_parts_with_padded_evaluation_on_two_processes(tmp_path):
    """360 images in batches of 100, over four devices."""
    fields = {"pretrain.epochs": 0.2, "gates.epochs": 0.1, "joint.epochs": 0.2}
    fields |= {"accumulate_steps": 2, "eval.batch_size": 100}
    for process in start_two(tmp_path, *(f"--config.{n}={value}" for n, value in fields.items())):
        finish(process)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    evaluated = [line for line in map(json.loads, text.splitlines()) if line["kind"] == "eval"]
    assert [line["phase"] for line in evaluated] == ["pretrain", *["gates"] * 2, *["joint"] * 2]
    assert {line["examples"] for line in evaluated} == {360}


@pytest.mark.slow
def test_stopped_on_four_devices_goes_on_with_one(alone, tmp_path):
    with start(tmp_path, 4) as process:
        wait_for_checkpoint(tmp_path, process)
        process.kill()
    printed, _ = finish(start(tmp_path))
    assert printed.startswith("Going on from step 1")
    assert_same(tmp_path, alone)


@pytest.mark.slow
def test_one_of_two_processes_is_told_to_stop_and_one_goes_on_alone(alone, tmp_path):
    processes = start_two(tmp_path)
    written = tmp_path / "run" / "metrics.jsonl"
    # At once: the processes take some steps to agree on the one that they stop after.
    while not (written.exists() and written.read_text()):
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    stopped = set()
    for process in processes:
        _, errors = finish(process, expected=75)
        stopped |= set(re.findall(r"SIGTERM: stopped after step (\d+) and saved", errors))
    (step,) = stopped
    printed, _ = finish(start(tmp_path))
    assert printed.startswith(f"Going on from step {step}:")
    assert_same(tmp_path, alone)


@pytest.mark.slow
def test_a_notice_before_the_first_step_of_a_run_that_goes_on_is_heard(alone, tmp_path):
    processes = start_two(tmp_path)
    wait_for_checkpoint(tmp_path, *processes)
    for process in processes:
        process.kill()
        process.communicate()
    written = tmp_path / "run" / "config.json"
    written.unlink()
    processes = start_two(tmp_path)
    while not written.exists():  # Before the step is compiled.
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.01)
    processes[0].send_signal(signal.SIGTERM)
    for process in processes:
        _, errors = finish(process, expected=75)
        assert "SIGTERM: stopped after step 1" in errors


@pytest.mark.slow
def test_a_process_whose_peer_dies_ends_and_the_run_goes_on(alone, tmp_path):
    survivor, other = start_two(tmp_path)
    wait_for_checkpoint(tmp_path, survivor, other)
    other.kill()
    other.communicate()
    killed = time.monotonic()
    with survivor:
        _, errors = survivor.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    # Which comes first is chance: a sum that fails, or JAX's own heartbeat, which aborts.
    said = {
        76: "Another process of this run is gone: start all of them again",
        -signal.SIGABRT: "This most likely indicates that another task died",
    }
    assert survivor.returncode in said, errors
    assert said[survivor.returncode] in errors
    for process in start_two(tmp_path):
        finish(process)
    assert_same(tmp_path, alone)


def test_a_batch_that_devices_cannot_share_is_one_sentence(tmp_path):
    process = start(tmp_path, 3, "--config.accumulate_steps=2")
    printed, errors = finish(process, expected=2)
    assert (printed, errors) == (
        "",
        "error: data.batch_size is 64, which 3 devices cannot share in accumulate_steps = 2 equal "
        "parts each; expected a multiple of 6, as 66.\n",
    )
    assert not list(tmp_path.iterdir())


def test_processes_that_do_not_find_one_another_are_one_sentence(tmp_path):
    _, errors = finish(start(tmp_path, 1, "--distributed"), expected=2)
    assert errors.startswith("error: The processes of this run did not find one another (")
    assert errors.endswith("and another --process_id on each.\n") and errors.count("\n") == 1
    _, errors = finish(start(tmp_path, 1, "--num_processes=2"), expected=2)
    expected = "--coordinator, --num_processes and --process_id need --distributed."
    assert errors == f"error: {expected}\n"
