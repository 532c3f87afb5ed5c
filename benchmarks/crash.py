"""Does a run that is killed again and again end where it would have ended?

    python benchmarks/crash.py [--kills=25] [--seed=0] [--output=DIR]

Trains a small network on the digits once without a kill, then again from the start, with SIGKILL at
random moments: every second one while a checkpoint is being written. The two must end with the same
parameters, bit for bit, and the same losses. Runs on CPU. The record says when each kill came; it
lies in --output (default: runs/benchmarks/crash; what is to be kept in the repository:
results/crash).
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from benchmarks import results, timing
from urnet_jax.errors import make_folder, told_to_the_user
from urnet_jax.runs import checkpoint, writers
from urnet_jax.runs.load import load_network
from urnet_jax.runs.meta import FOLDER

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUN = {
    "model.depth": 8,
    "pretrain.epochs": 1.5,
    "gates.epochs": 0.5,
    "joint.epochs": 1.5,
    "eval.every_epochs": 0.3,
    "eval.scales": "0.2,1.0",
    "checkpoint.every_epochs": 0.1,
    "log.every_steps": 1,
}
"""Fields in which the run differs from configs/digits.py: 79 steps, saved every second one."""

TEMPORARY = "*.orbax-checkpoint-tmp*"
"""What Orbax calls a checkpoint that is not complete."""


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user("Interrupted: nothing is kept of this benchmark."):
        values = parse(list(argv))
        make_folder(values.output, "--output")
        with tempfile.TemporaryDirectory(prefix="urnet_jax_crash_") as folder:
            record = crash(pathlib.Path(folder), values.kills, values.seed)
        path = pathlib.Path(values.output) / f"{results.device_slug(record['device'])}.json"
        results.write_json(path, record)
        print(f"{record['kills']} kills, {record['while_saving']} while saving: {path}")


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not usable.
    """
    values = flags.FlagValues()
    flags.DEFINE_integer("kills", 25, "", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "", flag_values=values)
    flags.DEFINE_string("output", results.default_output("crash"), "", flag_values=values)
    timing.parse_flags(values, argv, __doc__ or "")
    return values


def crash(folder: pathlib.Path, kills: int, seed: int) -> dict[str, Any]:
    """Runs both runs; the record of the killed one.

    Raises:
      RuntimeError: it ends elsewhere than the other, or a process ends otherwise than it should.
    """
    whole, killed = folder / "whole", folder / "killed"
    _finish(_start(whole))
    rng, record = np.random.default_rng(seed), []
    with tqdm(total=kills, desc="kills", unit="kill", disable=None, leave=False) as bar:
        while len(record) < kills:
            begun = checkpoint.steps(killed)[-1:] if killed.exists() else []
            process = _start(killed)
            moment = _wait_for_moment(process, killed, rng, while_saving=len(record) % 2 == 0)
            process.kill()
            printed, errors = process.communicate()
            if process.returncode == 0:  # It was done before: compared, and begun anew.
                _compare(whole, killed)
                shutil.rmtree(killed)
                continue
            if process.returncode != -signal.SIGKILL:
                raise RuntimeError(f"training ended by itself:\n{printed}{errors}")
            now = checkpoint.steps(killed)[-1:]
            record.append({"went_on_from": begun, "newest_after": now, **moment})
            bar.update()
    _finish(_start(killed))
    _compare(whole, killed)
    return {
        "device": results.describe_device(),
        "runs": [results.describe_run()],
        "kills": len(record),
        "while_saving": sum(entry["while_saving"] for entry in record),
        "seed": seed,
        "identical": True,
        "rows": record,
    }


def _start(workdir: pathlib.Path) -> subprocess.Popen[str]:
    fields = [f"--config.{name}={value}" for name, value in RUN.items()]
    command = [sys.executable, str(ROOT / "train.py"), "--config=digits", f"--workdir={workdir}"]
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [*command, *fields], env=os.environ | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _finish(process: subprocess.Popen[str]) -> None:
    printed, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"training ended with {process.returncode}:\n{printed}{errors}")


def _wait_for_moment(
    process: subprocess.Popen[str], workdir: pathlib.Path, rng: np.random.Generator, *,
    while_saving: bool,
) -> dict[str, Any]:  # fmt: skip
    """Waits for a random moment of the process's life, or of one of its saves."""
    checkpoints, start = workdir / FOLDER, time.monotonic()
    old = set(checkpoints.glob(TEMPORARY))
    before = checkpoint.steps(workdir)[-1:] if workdir.exists() else []
    saves = int(rng.integers(0, 3))  # that are let through
    later_s = rng.uniform(0, 1.5)
    seen: set[str] = set()
    while process.poll() is None:
        writing = set(checkpoints.glob(TEMPORARY)) - old
        seen |= {path.name.split(".")[0] for path in writing}
        if while_saving and writing and len(seen) > saves:
            time.sleep(rng.uniform(0, 0.02))
            break
        if not while_saving and (workdir.exists() and checkpoint.steps(workdir)[-1:] != before):
            time.sleep(later_s)
            break
        time.sleep(0.001)
    caught = bool(set(checkpoints.glob(TEMPORARY)) - old)
    return {"after_s": round(time.monotonic() - start, 2), "while_saving": caught}


def _compare(whole: pathlib.Path, killed: pathlib.Path) -> None:
    expected, found = (load_network(run) for run in (whole, killed))
    if expected[0] != found[0]:
        raise RuntimeError(f"the killed run ended as {found[0]}, not {expected[0]}")
    for one, other in zip(*map(jax.tree.leaves, (expected[1:], found[1:])), strict=True):
        if np.asarray(one).tobytes() != np.asarray(other).tobytes():
            raise RuntimeError("the killed run ended with other parameters")
    lines = [
        {(line["kind"], line["step"], line.get("scale")): line.get("loss", line.get("correct"))
         for line in writers.read(run)} for run in (whole, killed)
    ]  # fmt: skip
    if lines[0] != lines[1]:
        raise RuntimeError("the killed run wrote other losses")


if __name__ == "__main__":
    main(sys.argv)
