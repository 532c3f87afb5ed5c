"""One small training run on other numbers of devices and processes."""

import contextlib
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

from urnet_jax import config as config_lib
from urnet_jax.runs.writers import MetricWriter

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIELDS = {
    # The shipped recipe of two passes, with its prior, anchors, controller and guard, for short.
    "model.depth": 8, "pretrain.epochs": 0.0, "gates.epochs": 0.0, "joint.epochs": 0.9,
    "eval.scales": (0.2, 1.0), "eval.every_epochs": 0.0, "log.every_steps": 1,
    "checkpoint.every_epochs": 0.45,
    # Sums round otherwise on other numbers of devices. A gate that is a hard step, and a long step
    # of the optimiser, would make much of little.
    "gate.sigmoid_probability": 1.0, "gate.straight_through": False, "scale.usage": "gate",
    "joint.learning_rate": 0.001,
    # Adam's steps would not tell a gradient from one that is a number of devices times too large.
    "joint.gate_optimizer": "sgd", "joint.gate_learning_rate_factor": 10.0,
}  # fmt: skip
STEPS, SAVED = 20, 10

IN_ONE_PROCESS = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from urnet_jax import config as config_lib
from urnet_jax.errors import Stopped
from urnet_jax.train import loop
from urnet_jax.xla import sharding

fields, runs = map(json.loads, sys.argv[1:])
config = config_lib.load("digits")
tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
config.update_from_flattened_dict(fields | tuples)
for workdir, devices, last in runs:
    mesh = jax.sharding.Mesh(sharding.in_order(jax.devices()[:devices]), ("data",))
    try:
        loop.train_and_evaluate(
            config, workdir, mesh=mesh, asked_to_stop=lambda n: "SIGTERM" if n == last else ""
        )
    except Stopped:
        print("stopped", flush=True)
"""
"""Trains runs one after another: [workdir, number of devices, step to stop after or 0] each."""


def start(folder: pathlib.Path, devices: int = 1, *arguments: str) -> subprocess.Popen[str]:
    flags = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = ["train.py", "--config=digits", "--workdir=run", *flags, *arguments]
    return subprocess.Popen(
        [sys.executable, str(ROOT / command[0]), *command[1:]],
        cwd=folder, env=os.environ | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def start_two(folder: pathlib.Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """Two processes with two devices each."""
    together = ["--distributed", f"--coordinator={free_address()}", "--num_processes=2", *arguments]
    return [start(folder, 2, *together, f"--process_id={k}") for k in range(2)]


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


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
def trained(tmp_path_factory) -> pathlib.Path:
    """A folder of folders with a run each: on 1, 2, 4, 8 devices, and stopped on 4 to go on with 1.

    All were trained in one process with eight devices.
    """
    folder = tmp_path_factory.mktemp("trained")
    runs = [(f"{devices}/run", devices, 0) for devices in (1, 2, 4, 8)]
    runs += [("stopped/run", 4, SAVED + 1), ("stopped/run", 1, 0)]
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(FIELDS), json.dumps(runs)],
        cwd=folder, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("stopped") == 1
    assert f"Going on from step {SAVED + 1}: " in done.stdout
    return folder


@pytest.fixture(scope="module")
def alone(trained) -> pathlib.Path:
    """The run on one device, never interrupted."""
    return trained / "1"


@pytest.mark.parametrize("others", ["2", "4", "8", "stopped"])
def test_devices_share_the_batch(others, trained, alone):
    assert_same(trained / others, alone)


def test_processes_share_the_batch_and_one_of_them_writes(alone, tmp_path):
    outputs = [finish(process)[0] for process in start_two(tmp_path)]
    assert_same(tmp_path, alone)
    # Not all that they print is ours: Gloo, XLA's library, says on stdout whom it found.
    for sentence in (" parameters", "joint 20/20: loss", "After phase joint, step 20"):
        assert [sentence in printed for printed in outputs] == [True, False]


STALE = """
import contextlib, sys
import jax
from urnet_jax.xla import sharding

address, number, stale = sys.argv[1:]
sharding.start_distributed(address, 2, int(number))
from urnet_jax import config as config_lib
from urnet_jax.data.sources import open_split
from urnet_jax.runs.checkpoint import Checkpointer
from urnet_jax.runs.writers import MetricWriter
from urnet_jax.train import loop, start

config = config_lib.from_json(open("run/config.json").read())
train_split, test_split = (open_split(config.data, name) for name in ("train", "test"))
mesh = sharding.make_mesh()
steps_per_epoch = 1437 / 64
state = start.start_phase(config, "joint", steps_per_epoch, None, mesh)
state = state.replace(step=state.step + 20, phase_step=state.phase_step + 20)
writer = MetricWriter(
    "elsewhere" if number == stale else "run", resume_step=20, silent=number != "0"
)
with contextlib.closing(Checkpointer("run", keep=2)) as checkpointer:
    run = loop.Run(
        config, mesh, steps_per_epoch, checkpointer, writer, train_split, test_split, iter(()),
        lambda n: "",
    )
    loop.run_phase(run, "joint", state)
"""
"""A process at the end of a run whose evaluation is made; number `stale` does not see its lines."""


@pytest.mark.slow
def test_a_host_that_reads_stale_metrics_does_not_evaluate_alone(tmp_path):
    config = config_lib.load("digits")
    config.update_from_flattened_dict(FIELDS)
    for folder in ("run", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run" / "config.json").write_text(config_lib.to_json(config))
    with contextlib.closing(MetricWriter(tmp_path / "run")) as writer:
        for scale in config.eval.scales:
            writer.write("eval", STEPS, {"phase": "joint", "scale": scale})
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    command = [sys.executable, "-c", STALE, free_address()]
    processes = [
        subprocess.Popen(
            [*command, str(number), "1"], cwd=tmp_path, env=os.environ | {"JAX_PLATFORMS": "cpu"},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) for number in range(2)
    ]  # fmt: skip
    for process in processes:
        finish(process)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


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
    with survivor:
        _, errors = survivor.communicate(timeout=300)
    # Which comes first is chance: a sum that fails, or JAX's own heartbeat, which aborts and speaks
    # for itself.
    assert survivor.returncode in (76, -signal.SIGABRT), errors
    if survivor.returncode == 76:
        assert "Another process of this run is gone: start all of them again" in errors
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
