"""What `gpu.py` shows in turn: the other benchmarks, and a training that goes on from call to call.

What a part needs is imported within it: what is missing costs the parts that need it.
"""

import dataclasses
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from benchmarks import results
from urnet_jax.errors import Stopped

HERE = pathlib.Path(__file__).resolve().parent
CIFAR_PIXELS, IMAGENET_PIXELS = 32, 224
IMAGENET = ("resnet50", "resnet101")
"""Networks of 224 px; all others are CIFAR's."""

SAVE_S = 30.0
"""Seconds before the end at which the training is told to stop: it ends a step and saves."""

ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch shares the card.
    # float32 is exact in urnet_jax (`precision`), so PyTorch's convolutions must not be TF32.
    "NVIDIA_TF32_OVERRIDE": "0",
    # torch.compile's workers would be taken for other processes that disturb the times.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}

TABLES = {"matplotlib": "matplotlib", "rich": "rich", "tqdm": "tqdm"}
TORCH = {"torch": "torch"}
CONFIGS = {
    "PIL": "pillow", "clu": "clu", "cykooz_resizer": "cykooz-resizer", "optax": "optax",
    "ml_collections": "ml-collections", "simplejpeg": "simplejpeg", "wrapt": "wrapt",
}  # fmt: skip
DATA = {
    "array_record": "array_record", "attr": "attrs", "grain": "grain", "orbax": "orbax-checkpoint",
    "immutabledict": "immutabledict", "pandas": "pandas", "portpicker": "portpicker",
    "promise": "promise", "pyarrow": "pyarrow", "safetensors": "safetensors", "six": "six",
    "tensorflow_datasets": "tensorflow-datasets", "tensorflow_metadata": "tensorflow-metadata",
    "toml": "toml", "tree": "dm-tree",
}  # fmt: skip
"""Packages, by the names under which they are imported."""

Found = tuple[list[results.Row], dict[str, str]]
"""A part's rows, and what there is to say of it: `failed`, `unfinished`, `skipped`."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What is recorded together.

    Attributes:
      name: in --parts.
      estimate_s: seconds that its start and its first result may take, a guess: with less left
        nothing is begun.
      needs: packages by the names under which they are imported.
      commands: arguments for Python, without the flags that `run_commands` adds.
      groups: of the commands' record, which lies in a folder of the part's name.
      settings: what the result depends on.
    """

    name: str
    estimate_s: float
    needs: dict[str, str]
    commands: tuple[tuple[str, ...], ...] = ()
    groups: tuple[str, ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def parts(values: flags.FlagValues) -> list[Part]:
    """All parts, in order of worth."""
    large = [size for size in values.batches if int(size) > 1]
    timed, torch = [f"--repeats={values.repeats}", "--compile=False"], f"--torch={values.torch}"
    with_torch = TORCH if values.torch else {}

    def command(script: str, *arguments: str) -> tuple[str, ...]:
        return (str(HERE / f"{script}.py"), *arguments)

    def inference(
        name: str, dtype: str, batches: Sequence[str], needs: dict[str, str], *more: str
    ) -> Part:
        shared = f"--batch_sizes={','.join(batches)}", f"--dtype={dtype}", *timed, *more
        commands = [command("inference", f"--networks={n}", *shared) for n in values.networks]
        groups = [_group(n, size, dtype) for n in values.networks for size in batches]
        return _part(name, 90, TABLES | needs, commands if batches else [], groups)

    usages, dtypes = f"--usages={','.join(values.usages)}", ("float32", "bfloat16")
    equality = [command("equality", f"--networks={n}") for n in values.networks]
    equal = [_group(n, size, dtype) for n in values.networks for size in (4, 1) for dtype in dtypes]
    # What bfloat16 rounds, part `equality` says; as a check it could cost all times.
    rounded = (usages, torch, "--check=False")
    return [
        _part("equality", 60, {}, equality, equal),
        inference("inference", "float32", values.batches, with_torch, usages, torch),
        inference(
            "compact_pieces", "float32", large, {},
            "--usages=0.5", "--executions=compact,pieces", "--torch=False",
        ),
        _training_steps(values),
        inference("inference_bfloat16", "bfloat16", values.batches, with_torch, *rounded),
        Part(
            "training", 120, TABLES | CONFIGS | DATA,
            settings={"base": values.base, "data": values.data, "scale": values.epochs_scale},
        ),
    ]  # fmt: skip


def _training_steps(values: flags.FlagValues) -> Part:
    commands, groups = [], []
    for name in values.networks:
        pixels = IMAGENET_PIXELS if name in IMAGENET else CIFAR_PIXELS
        commands.append(
            (
                str(HERE / "training.py"), f"--networks={name}", f"--image_size={pixels}",
                f"--batch_size={values.training_batch}", "--dtype=float32,bfloat16",
                f"--repeats={values.repeats}", "--input=False", f"--torch={values.torch}",
                f"--torch_compile={values.torch}",
            )
        )  # fmt: skip
        shown = name if pixels == CIFAR_PIXELS else f"{name} at {pixels} px"
        groups += [_group(shown, values.training_batch, t) for t in ("float32", "bfloat16")]
    needs = TABLES | CONFIGS | (TORCH if values.torch else {})
    return _part("training_steps", 90, needs, commands, groups)


def _part(
    name: str, estimate_s: float, needs: dict[str, str], commands: Sequence[tuple[str, ...]],
    groups: Sequence[str],
) -> Part:  # fmt: skip
    shown = [" ".join([pathlib.Path(c[0]).name, *c[1:]]) for c in commands]
    settings = {"commands": shown, "environment": ENVIRONMENT}
    return Part(name, estimate_s, needs, tuple(commands), tuple(groups), settings)


def _group(network: str, batch: int | str, dtype: str) -> str:
    """The name that the benchmarks give to what they measure together."""
    return f"{network}, batch {batch}, {dtype}"


def run_commands(
    part: Part, output: str, device: dict[str, Any], deadline: float, *, fresh: bool
) -> Found:
    """Runs a part's commands, each a process of its own, and reads what they have recorded."""
    folder, failed, anew = f"{output}/{part.name}", [], ["--fresh"] if fresh else []
    for command in part.commands:
        left_s = deadline - time.monotonic()
        if left_s < part.estimate_s:
            break
        # With less than the estimate left, a command begins no further group.
        limit = f"--time_limit_s={max(left_s - part.estimate_s, 1.0)}"
        problem = call([*command, f"--output={folder}", limit, *anew], deadline)
        if problem:
            failed.append(problem)
    path = pathlib.Path(results.record_path(folder, device))
    record = json.loads(path.read_text()) if path.exists() else {"groups": [], "rows": []}
    held = {group["group"]: group["notes"] for group in record["groups"]}
    rows = []
    for name in part.groups:
        if name in held:
            own = [row for row in record["rows"] if row["group"] == name]
            rows.append({"what": name, **numbers(own), **held[name]})
    missing = [name for name in part.groups if name not in held]
    if failed:
        return rows, {"failed": "; ".join(failed)}
    return rows, {"unfinished": f"not measured yet: {'; '.join(missing)}"} if missing else {}


def call(arguments: Sequence[str], deadline: float) -> str:
    """Runs Python, and kills it with all that it started when the time is over.

    Returns:
      One sentence where it ended with an error, else an empty string.
    """
    left_s = deadline - time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=os.environ | ENVIRONMENT, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(max(left_s, 0.0) if left_s < float("inf") else None)
        except subprocess.TimeoutExpired:
            return ""
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        errors.seek(0)
        said = [line.strip() for line in errors if line.strip()]
    if not code:
        return ""
    print("\n".join(said[-30:]), file=sys.stderr)
    return f"{pathlib.Path(arguments[0]).name} ended with {code}: {sentence(said)}"


def sentence(said: Sequence[str]) -> str:
    """The one line of stderr that names the error: JAX says more after it."""
    named = [line for line in said if re.match(r"error: |[\w.]+(Error|Exception): ", line)]
    return (named or said or ["it said nothing"])[-1].removeprefix("error: ")[:300]


def numbers(rows: Sequence[results.Row]) -> dict[str, float]:
    """What is worth reading at once of a group: milliseconds, or how far from dense."""
    found: dict[str, float] = {}
    for row in rows:
        if "relative_difference" in row and "median_ms" not in row:
            name = f"{row['execution']}, of dense"
            found[name] = max(found.get(name, 0.0), row["relative_difference"])
        elif row["kind"] == "step":
            found[_name(row, row["step"])] = row["median_ms"]
        elif row["gates"] in ("all on", "independent") and row["execution"] != "dropping":
            usage = "" if row["gates"] == "all on" else f" {row['usage']:g}"
            found[_name(row, row["execution"] + usage)] = row["median_ms"]
    return found


def _name(row: results.Row, what: str) -> str:
    return f"{'PyTorch ' if row['framework'] == 'torch' else ''}{what}, ms"


def train(values: flags.FlagValues, deadline: float) -> Found:
    """Trains until the time is nearly over, from what an earlier call has left; packs what it has.

    Raises:
      UserError: the state is of a run with other settings, or training fails.
    """
    # Only here: they need the packages of configs and data.
    from benchmarks import paper_rows, trained
    from urnet_jax import config as config_lib
    from urnet_jax.phases import PHASES

    if not values.data_dir and values.data != "digits":
        return [], {"skipped": "--data_dir is missing; name a prepared TFDS data_dir"}
    name, config = f"{values.base}_{values.data}", "cifar10_resnet110"
    workdir = pathlib.Path(values.workdir) / name
    packed = pathlib.Path(values.state or f"{values.output}/state") / f"{name}.tar"
    if packed.exists() and not workdir.exists():
        with tarfile.open(packed) as tar:
            tar.extractall(workdir.parent, filter="data")
    fields = trained.STEADY | paper_rows.DATA[values.data] | {"data.dir": values.data_dir}
    fields["model.depth"] = int(values.base.removeprefix("resnet"))
    for phase in PHASES:
        epochs = config_lib.load(config)[phase].epochs
        fields[f"{phase}.epochs"] = values.epochs_scale * epochs
    network = trained.Network(workdir, config, fields, trained.settings_of(config, fields))
    trained.check_workdir(network)
    notes = {}
    try:
        trained.train(network, deadline - SAVE_S)
    except Stopped:
        notes["unfinished"] = "stopped and saved; the same command goes on"
    finally:
        pack(workdir, packed)
    return [progress(workdir)], notes


def pack(workdir: pathlib.Path, packed: pathlib.Path) -> None:
    """Puts a run into one file, which is replaced as a whole."""
    packed.parent.mkdir(parents=True, exist_ok=True)
    temporary = packed.parent / f".{packed.name}.tmp"
    with tarfile.open(temporary, "w") as tar:
        tar.add(workdir, arcname=workdir.name)
    temporary.replace(packed)


def progress(workdir: pathlib.Path) -> results.Row:
    """How far a run is: its last step and top-1 in training, the pace of its phase, evaluations."""
    from urnet_jax.runs import writers

    lines = writers.read(workdir)
    steps = [line for line in lines if line["kind"] == "train"]
    row: results.Row = {"what": workdir.name}
    if not steps:
        return row | {"step": 0}
    last = steps[-1]
    pace = statistics.median(s["images_per_s"] for s in steps if s["phase"] == last["phase"])
    row |= {"phase": last["phase"], "step": last["step"], "images/s": pace}
    row["top-1 in training, %"] = 100 * last["top1"]
    evals = [line for line in lines if line["kind"] == "eval"]
    latest = [line for line in evals if line["step"] == evals[-1]["step"]]
    return row | {f"top-1 at S = {line['scale']:g}, %": line["top1_percent"] for line in latest}
