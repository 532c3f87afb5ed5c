"""All that a GPU must show, in order of worth, in the minutes that one is at hand.

    python benchmarks/gpu.py --output=DIR [--data_dir=DIR] [--state=DIR] ...

--parts           of those below, separated by commas; default: all
--networks        of resnet20, resnet110, resnet50 and resnet101; default: resnet110,resnet50
--batches         of inference; default: 128,1,1024
--usages          of inference, shares of blocks that run; default: 0.25,0.5,1
--repeats         timed rounds; default: 5
--training_batch  of the timed training steps; default: 128
--torch           also times PyTorch, eager and through torch.compile (default)
--base            the network that part `training` trains; default: resnet110
--data            cifar10 (default), or digits, to try it out
--data_dir        a prepared TFDS data_dir for it; the digits need none
--epochs_scale    1 (default): the 664 epochs of configs/cifar10_resnet110.py; less: shorter
--workdir         the folder of its run; default: runs/gpu
--state           a folder with one file for the run, NETWORK_DATA.tar: training that stops is
                  packed into it, and goes on from it where --workdir is empty; default: `state` in
                  the output
--time_limit_s    of the whole; default: 540
--output          the folder for the results; default: runs/benchmarks/gpu; what is to be kept in
                  the repository: results/gpu
--fresh           measures again what is there already

equality            cond, compact and pieces beside dense, float32 and bfloat16 (equality.py)
inference           float32, beside PyTorch (inference.py)
compact_pieces      `compact` beside `pieces`, between which execution `auto` has to choose
training_steps      float32 and bfloat16, beside PyTorch (training.py)
inference_bfloat16  as inference
training            as much of ResNet-110 on CIFAR-10 as the time allows

What a part has shown is recorded when it ends, that it failed or was skipped too; what its
benchmark measures is recorded in a folder of its own, group by group. The same command goes on with
what is not whole. On another machine it does so if --output and --state are carried there. On a CPU
it runs only if JAX_PLATFORMS=cpu asks for that.

What it needs: jax with CUDA, flax, optax, absl-py, etils, jaxtyping, numpy, rich; for times also
matplotlib, tqdm and torch; for training_steps also clu, cykooz-resizer, ml-collections, pillow,
simplejpeg and wrapt; for training also array_record, attrs, dm-tree, grain, immutabledict,
orbax-checkpoint, pandas, portpicker, promise, pyarrow, safetensors, six, tensorflow-datasets,
tensorflow-metadata and toml. A part that lacks one is recorded as failed, and names it. To a
machine without internet carry the wheels of what it lacks: `pip download --no-deps
--only-binary=:all: -d WHEELS NAMES`, with its --python-version and --platform (promise has no
wheel: `pip wheel --no-deps -w WHEELS promise` makes it); there
`pip install --no-index --no-deps --target=FOLDER WHEELS/*.whl`, and FOLDER in PYTHONPATH.
"""

import functools
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import gpu_parts, results, timing
from benchmarks.gpu_parts import Found, Part
from urnet_jax.errors import UserError, told_to_the_user

NETWORKS = ("resnet20", "resnet110", "resnet50", "resnet101")
AGAIN = ("failed", "skipped", "unfinished")
"""Words about a part that is not whole, and is run again."""

DEVICE_S = 120.0
"""Seconds in which JAX has to find its device."""


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    # Else what runs in a process of its own would outlive this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with told_to_the_user("Interrupted: the same command goes on where it stopped."):
        run(parse(list(argv)))


def parse(argv: list[str]) -> flags.FlagValues:
    """The command's flags.

    Raises:
      UserError: one of them is not usable.
    """
    values = flags.FlagValues()
    listed = functools.partial(flags.DEFINE_list, help="", flag_values=values)
    text = functools.partial(flags.DEFINE_string, help="", flag_values=values)
    listed("parts", [])
    listed("networks", ["resnet110", "resnet50"])
    listed("batches", ["128", "1", "1024"])
    listed("usages", ["0.25", "0.5", "1"])
    for name, number in {"repeats": 5, "training_batch": 128}.items():
        flags.DEFINE_integer(name, number, "", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("torch", True, "", flag_values=values)
    text("base", "resnet110")
    text("data_dir", "")
    text("workdir", "runs/gpu")
    text("state", "")
    flags.DEFINE_enum("data", "cifar10", ["cifar10", "digits"], "", flag_values=values)
    flags.DEFINE_float("epochs_scale", 1.0, "", lower_bound=1e-6, flag_values=values)
    results.define_flags(values, "gpu")
    values.set_default("time_limit_s", 540.0)
    timing.parse_flags(values, argv, __doc__ or "")
    if not all(size.isdecimal() and int(size) for size in values.batches):
        raise UserError(
            f"--batches is {','.join(values.batches)!r}; expected whole numbers from 1, separated "
            "by commas."
        )
    if not re.fullmatch(r"resnet\d+", values.base):
        raise UserError(f"--base is {values.base!r}; expected resnet and a depth, as resnet110.")
    _check_names("networks", values.networks, NETWORKS)
    _check_names("parts", values.parts, [part.name for part in gpu_parts.parts(values)])
    return values


def _check_names(flag: str, given: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise UserError(f"--{flag} names {unknown[0]!r}; expected some of {', '.join(known)}.")


def run(values: flags.FlagValues) -> pathlib.Path:
    """Runs the parts that are asked for and not whole, as far as the time allows.

    Returns:
      The file.

    Raises:
      UserError: JAX finds no GPU, or parts failed; what the others showed is recorded.
    """
    deadline = time.monotonic() + values.time_limit_s
    # `results.measure` is called for each part, and a part that is skipped is to be recorded.
    values.time_limit_s, fresh = float("inf"), values.fresh
    device = describe_device()
    path = pathlib.Path(results.record_path(values.output, device))
    failed = []
    for part in gpu_parts.parts(values):
        if values.parts and part.name not in values.parts:
            continue
        left_s, before = deadline - time.monotonic(), _notes(path, part)
        if left_s < part.estimate_s and before is not None:
            print(f"{part.name}: no time is left; what is recorded stays.")
        else:
            print(f"{part.name}: {max(left_s, 0):.0f} s are left.", flush=True)
            attempt = functools.partial(measure, part, values, device, deadline, fresh)
            values.fresh = fresh or any(word in (before or {}) for word in AGAIN)
            results.measure(
                [(part.name, part.settings, attempt)], values, timed=False, device=device
            )
        if "failed" in (_notes(path, part) or {}):
            failed.append(part.name)
    print_table(json.loads(path.read_text()))
    print(path)
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; {path} says why, and has the other parts.")
    return path


def _notes(path: pathlib.Path, part: Part) -> dict[str, str] | None:
    """What is recorded of a part, beside its rows; None where nothing is."""
    groups = json.loads(path.read_text())["groups"] if path.exists() else []
    return next((g["notes"] for g in groups if g["group"] == part.name), None)


def describe_device() -> dict[str, Any]:
    """`results.describe_device` of another process: this one must leave the accelerator alone.

    Raises:
      UserError: JAX finds no device, or no GPU and was not told to use the CPU.
    """
    code = "import json; from benchmarks.results import *; print(json.dumps(describe_device()))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=gpu_parts.HERE.parent, capture_output=True, text=True,
            timeout=DEVICE_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError(f"JAX finds no device within {DEVICE_S:.0f} s.") from error
    if done.returncode:
        raise UserError(f"JAX finds no device: {gpu_parts.sentence(done.stderr.splitlines())}")
    device = json.loads(done.stdout.splitlines()[-1])
    if device["platform"] == "cpu" and os.environ.get("JAX_PLATFORMS") != "cpu":
        raise UserError(
            "JAX finds no GPU: install jax with CUDA, or set JAX_PLATFORMS=cpu to try this out on "
            "the CPU."
        )
    return device


def measure(
    part: Part, values: flags.FlagValues, device: dict[str, Any], deadline: float, fresh: bool
) -> Found:
    """Shows a part, as far as the time allows; nothing that goes wrong in it is raised."""
    if (left_s := max(deadline - time.monotonic(), 0.0)) < part.estimate_s:
        return [], {"skipped": f"it may take {part.estimate_s:.0f} s, and {left_s:.0f} are left"}
    if missing := _missing(part.needs):
        return [], {"failed": f"not installed: {', '.join(missing)}; --help says how to carry them"}
    try:
        if part.name == "training":
            return gpu_parts.train(values, deadline)
        return gpu_parts.run_commands(part, values.output, device, deadline, fresh=fresh)
    except Exception as error:  # Whatever it is, the other parts are still worth their time.
        return [], {"failed": f"{type(error).__name__}: {error}"[:500]}


def _missing(needs: dict[str, str]) -> list[str]:
    """What is not installed; nothing is imported."""
    missing = []
    for name, package in needs.items():
        try:
            found = importlib.util.find_spec(name)
        except ImportError:
            found = None
        if found is None:
            missing.append(package)
    return sorted(missing)


def print_table(record: results.Row) -> None:
    """Prints a line for each group of a part, and what is not whole."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("part", "what", "shown"):
        table.add_column(header)
    for group in record["groups"]:
        for row in record["rows"]:
            if row["group"] == group["group"]:
                table.add_row(group["group"], row["what"], _shown(row))
        for word in AGAIN:
            if word in group["notes"]:
                table.add_row(group["group"], word, group["notes"][word])
        table.add_section()
    Console().print(table)


def _shown(row: results.Row) -> str:
    hidden = {"group", "what", "platform", "device", "threads", "run"}
    return "; ".join(
        f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in row.items() if name not in hidden
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv)
