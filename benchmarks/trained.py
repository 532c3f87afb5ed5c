"""Networks that benchmarks train: each a run of train.py, resumed, evaluated, never mixed up."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import results
from urnet_jax import config as config_lib
from urnet_jax.errors import Stopped, UserError
from urnet_jax.fields import LATER
from urnet_jax.phases import PHASES
from urnet_jax.train.interruption import EXIT_CODES

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETTINGS = "paper.json"
"""In a run's workdir: what it was made with."""

PATHS = ("data.dir", "init.from", "pretrain.init_from", "gates.init_from", "joint.init_from")
"""Fields that say where something lies, and nothing of what it is."""

OF_GATES = ("gate.", "scale.", "shaping.", "l0.", "distill.", "model.gate_", "gates.")
"""Fields that mean nothing to a plain network, but for random drop, by how their names begin."""

STEADY: dict[str, Any] = {
    "eval.every_epochs": 0.0,
    "checkpoint.every_epochs": 1.0,
    "checkpoint.keep": 1,
    "checkpoint.keep_best": 0,
}
"""Fields of all runs: their checkpoints stay small enough to be carried elsewhere."""


@dataclasses.dataclass(frozen=True)
class Network:
    """One to be trained: its workdir, its config and the fields of that which are overridden."""

    workdir: pathlib.Path
    config: str
    fields: dict[str, Any]
    settings: dict[str, Any]
    """All that it hangs on."""


def settings_of(config: str, fields: dict[str, Any]) -> dict[str, Any]:
    """All that a network hangs on, as JSON gives it back; not where files lie.

    Raises:
      UserError: there is no such network.
    """
    whole = config_lib.load(config)
    whole.update_from_flattened_dict(fields)
    config_lib.validate(whole)
    kept = {n: v for n, v in config_lib.flatten(whole).items() if n not in PATHS}
    kept["init"] = pathlib.Path(fields.get("init.from", "")).name
    return json.loads(json.dumps(kept))


def seeds_of(text: str) -> list[int]:
    """The numbers of --seeds, each once; a UserError if one is none."""
    if not all(part.isdecimal() for part in text.split(",")):
        raise UserError(f"--seeds is {text!r}; expected whole numbers separated by commas.")
    return list(dict.fromkeys(int(part) for part in text.split(",")))


def same_settings(held: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether settings are the same, to what is recorded of their digits."""
    return _whole(held) == _whole(asked)


def _whole(settings: dict[str, Any]) -> dict[str, Any]:
    """With what fields mean that settings from before them lack, and without what says nothing.

    So what other networks are trained with can change in a config, and a record of this one stays.
    """
    base = {"base": _whole(settings["base"])} if "base" in settings else {}
    whole = results.rounded(LATER | settings | base)
    unheeded = tuple(f"{phase}." for phase in PHASES if not whole.get(f"{phase}.epochs", 1))
    if not whole.get("model.gated", True) and whole["gate.random_drop"] == "never":
        unheeded += OF_GATES
    return {
        name: value for name, value in whole.items()
        if not name.startswith(unheeded) or name.endswith(".epochs")
    }  # fmt: skip


def check_workdir(network: Network) -> None:
    """Refuses a run that was made with other settings, which it would go on with.

    Raises:
      UserError: there is one.
    """
    path = network.workdir / SETTINGS
    if not path.exists():
        if any(path.parent.glob("*")):
            raise UserError(
                f"{network.workdir} holds something else than a run of this benchmark: move it."
            )
        return
    held, asked = _whole(json.loads(path.read_text())), _whole(network.settings)
    for name in sorted(asked.keys() | held.keys()):
        if held.get(name) != asked.get(name):
            now, then = (f"{values.get(name)!r:.200}" for values in (asked, held))
            raise UserError(
                f"{network.workdir} holds a run with {name} {then}, and {now} is asked for: move "
                "that folder, or name another --workdir."
            )


def train(network: Network, deadline: float) -> None:
    """Trains a network to its end, or goes on with it.

    Raises:
      Stopped: the time was over, or a SIGTERM came; it has saved.
      UserError: training ended otherwise, and has said why.
    """
    results.write_json(network.workdir / SETTINGS, network.settings)
    print(f"{network.workdir.name}: {network.config}", flush=True)
    overrides = [f"--config.{field}={_text(value)}" for field, value in network.fields.items()]
    what = f"--workdir={network.workdir}", f"--config={network.config}", *overrides
    run("train", *what, deadline=deadline)


def measure(
    network: Network, trainings: Sequence[Callable[[], None]], deadline: float
) -> tuple[list[results.Row], dict[str, str]]:
    """Trains what is needed, the network itself the last, and evaluates it.

    Raises:
      Stopped, UserError: see `train`; evaluation likewise.
    """
    for train in trainings:
        train()
    found = evaluate(network, deadline)
    return [{**row, "step": found["step"]} for row in found["rows"]], {
        "architecture": found["architecture"]
    }


def evaluate(network: Network, deadline: float, *flags: str) -> dict[str, Any]:
    """Evaluates a network that is trained; what its eval.json holds."""
    where = f"--workdir={network.workdir}", f"--data_dir={network.fields['data.dir']}"
    run("evaluate", *where, *flags, deadline=deadline)
    return json.loads((network.workdir / "eval.json").read_text())


def _text(value: Any) -> str:
    """A field as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def run(command: str, *arguments: str, deadline: float) -> None:
    """Runs `urnet COMMAND` to its end, or has it save when the time is over."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "urnet_jax", command, *arguments],
        env=os.environ | {"PYTHONPATH": path},
    )
    # Whoever stops the benchmark stops the training, which saves.
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    why = "Stopped by a signal"
    try:
        left_s = deadline - time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(left_s, 0.0) if left_s < float("inf") else None)
        if process.poll() is None:
            process.terminate()
            why = "--time_limit_s is over"
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # It has had the Ctrl-C too, and saves.
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code in (EXIT_CODES["SIGTERM"], -signal.SIGTERM):
        saved = "what was in training has saved, and " if code != -signal.SIGTERM else ""
        raise Stopped(f"{why}: {saved}the same command goes on.", EXIT_CODES["SIGTERM"])
    if code:
        raise UserError(f"urnet {command} ended with {code}, for the reason that it says above.")


def record(
    values: Any, groups: list[results.Group], about: dict[str, Any],
    write: Callable[[results.Row, pathlib.Path], list[pathlib.Path]],
) -> None:  # fmt: skip
    """Measures the groups, and writes what there is of them, also where it is stopped.

    Args:
      values: the command's flags; the files lie in a folder of its output for each base and data.
      groups: as `results.measure` takes them.
      about: what the record says of all of them, `base` and `dataset` at least.
      write: f(record, its file) -> the files that are written.
    """
    values.output = f"{values.output}/{about['base']}_{about['dataset']}"
    on = device()
    path = pathlib.Path(results.record_path(values.output, on))
    try:
        _, found = results.measure(
            groups, values, timed=False, device=on, about=about, same=same_settings
        )
    except (Stopped, UserError, KeyboardInterrupt):
        if path.exists():
            write(json.loads(path.read_text()) | about, path)
        raise
    asked = {name for name, _, _ in groups}
    if others := [g["group"] for g in found["groups"] if g["group"] not in asked]:
        print(f"Also in the record, by earlier commands: {'; '.join(others)}.")
    for written in write(found, path):
        print(written)


def device() -> dict[str, Any]:
    """`results.describe_device` of another process: this one must leave the accelerator alone."""
    code = "import json; from benchmarks.results import *; print(json.dumps(describe_device()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)
