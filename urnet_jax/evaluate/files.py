"""The files that an evaluation writes: tables, what each sample did, plots, and the page."""

import dataclasses
import datetime
import functools
import io
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax
import jax
import numpy as np
import pandas as pd
from etils import epath

import urnet_jax
from urnet_jax import config as config_lib
from urnet_jax.data.splits import Split
from urnet_jax.errors import UserError, make_folder
from urnet_jax.evaluate import page, plots
from urnet_jax.evaluate.evaluation import Evaluation, check_scales, evaluate, summarize
from urnet_jax.evaluate.figures import to_png
from urnet_jax.evaluate.inspection import Run
from urnet_jax.evaluate.step import make_eval_step
from urnet_jax.evaluate.table import print_table, strays
from urnet_jax.nets.execution import choose
from urnet_jax.nets.mode import Execution, Mode
from urnet_jax.phases import PHASES
from urnet_jax.runs import calibration, writers
from urnet_jax.runs.load import load_network


def describe(evaluation: Evaluation, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What eval.json records: `meta`, where and how the evaluation was made, and its table."""
    device = jax.devices()[0]
    return {
        **meta,
        "architecture": evaluation.arch.describe(),
        "scales": evaluation.scales,
        "command": shlex.join([*pathlib.Path(sys.argv[0]).name.split(), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.local_device_count(),
            "cpu_cores": os.cpu_count(),
        },
        "versions": {m.__name__: m.__version__ for m in (urnet_jax, jax, flax)},
        # JSON knows no NaN, which the loss of a diverged network is.
        "rows": summarize(evaluation).replace([np.inf, -np.inf, np.nan], None).to_dict("records"),
    }


def write(
    evaluation: Evaluation,
    directory: epath.PathLike,
    meta: Mapping[str, Any],
    show: Callable[[dict[str, Any]], str] | None = None,
) -> list[epath.Path]:
    """Writes eval.csv, eval.json, eval_samples.npz, top1_vs_flops.png and block_usage.png.

    Each file is replaced as a whole, so that an interruption leaves the old one or the new one.

    Args:
      evaluation: what to write.
      directory: of the files; it is made where it is missing.
      meta: more to record in eval.json, such as step, phase, dataset and split. Its
        `plain_top1_percent` is also drawn.
      show: gives report.html from what eval.json records; without it there is none.

    Returns:
      The files' paths, the plots after the tables and the page last.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    record, summary, arch = describe(evaluation, meta), summarize(evaluation), evaluation.arch
    # The logits are for inspection: as many floats as there are gates, which are bits.
    names = {field.name for field in dataclasses.fields(evaluation)} - {"arch", "gate_logits"}
    arrays: dict[str, Any] = {name: getattr(evaluation, name) for name in sorted(names)}
    arrays["correct"] = evaluation.right
    samples = io.BytesIO()
    np.savez_compressed(samples, **arrays)
    plain = meta.get("plain_top1_percent")
    curve = plots.plot_top1_vs_flops(summary, arch.describe(), plain)
    usage = plots.plot_block_usage(
        evaluation.gates, evaluation.scales, evaluation.gate_groups, arch.describe()
    )
    files = {
        "eval.csv": summary.to_csv(index=False).encode(),
        "eval.json": (json.dumps(record, indent=2, allow_nan=False) + "\n").encode(),
        "eval_samples.npz": samples.getvalue(),
        "top1_vs_flops.png": to_png(curve),
        "block_usage.png": to_png(usage),
    }
    if show is not None:
        files["report.html"] = show(record).encode()
    # Not before all are made: that takes seconds, in which old files would stand beside new ones.
    return [_replace(directory / name, content) for name, content in files.items()]


def _replace(path: epath.Path, content: bytes) -> epath.Path:
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_bytes(content)
    temporary.replace(path)
    return path


def evaluate_workdir(
    workdir: epath.PathLike,
    *,
    which: Literal["newest", "best"] | int = "newest",
    scales: Sequence[float] | None = None,
    split: str = "test",
    batch_size: int = 0,
    execution: Execution = "auto",
    data_dir: str | None = None,
    output: epath.PathLike | None = None,
    report: bool = False,
    calibrated: bool = True,
) -> pd.DataFrame:
    """Evaluates a run's checkpoint: returns and prints its table, `write`s its files.

    All devices of this process share each batch; other hosts take no part. An older report.html is
    removed if `report` is not set, because it would show another evaluation than the new files.

    Args:
      workdir: of the run; nothing else is needed.
      which: its checkpoint, see `load.load_network`.
      scales: the grid of S; by default the config's.
      split: `train` or `test`.
      batch_size: samples per step; 0 takes the config's.
      execution: how gated blocks are run, see `nets.mode.Execution`.
      data_dir: where the dataset lies now; by default where the config says.
      output: folder of the files; by default the workdir.
      report: also writes `page.make`'s report.html, which shows the evaluation.
      calibrated: uses the checkpoint's calibration, if it has one.

    Raises:
      UserError: the workdir holds no readable checkpoint, or an argument is not usable.
    """
    requested = None if scales is None else check_scales(scales)
    if batch_size < 0:
        raise UserError(f"batch_size is {batch_size}; expected at least 1, or 0 for the config's.")
    directory = epath.Path(output or workdir)
    run = _load(workdir, which, calibrated)
    make_folder(directory, "--output")
    config, phase = run.config, run.meta.phase
    if data_dir:
        config.data.dir = data_dir
    opened = run.split(split)
    grid = _grid(run, requested or config.eval.scales)
    batch_size = min(batch_size or config.eval.batch_size, opened.num_examples)
    eval_step = make_eval_step(config, phase, execution, run.mesh)
    evaluation = evaluate(
        eval_step, *run.variables, opened, config, grid, batch_size, mesh=run.mesh,
        calibration=run.calibration,
    )  # fmt: skip

    share = -(-batch_size // jax.local_device_count())  # of one device
    about = _about(run, workdir, opened, choose(Mode(execution=execution), share).execution)
    show = functools.partial(page.make, run, opened, evaluation) if report else None
    if not report:
        _remove_older_page(directory)
    paths = write(evaluation, directory, about, show)
    _show(summarize(evaluation), run, opened, about.get("plain_top1_percent"))
    print(*paths, sep="\n")
    return summarize(evaluation)


def _load(workdir: epath.PathLike, which: Literal["newest", "best"] | int, calibrated: bool) -> Run:
    """A run's network, of whatever phase, with its calibration if that is wanted."""
    network = load_network(workdir, which)
    return Run(*network, calibration.read(workdir, network.meta.step) if calibrated else None)


def _remove_older_page(directory: epath.Path) -> None:
    """It would show another evaluation than the new files beside it."""
    older = directory / "report.html"
    if older.exists():
        older.unlink()
        print(f"Removed {older}, which shows an older evaluation; --report writes a new one.")


def _show(summary: pd.DataFrame, run: Run, split: Split, plain: float | None) -> None:
    """Prints the table of an evaluation, and what the plain network had."""
    images = f"{summary['examples'].iloc[0]} images of {split.dataset} {split.name}"
    step = f"step {run.meta.step} ({run.meta.phase})"
    held = "" if run.calibration is None else ", calibrated"
    print_table(summary, f"{run.arch.describe()}\n{images}, {step}{held}")
    calibrated = run.calibration is not None
    own_gates = run.arch.gated and PHASES[run.meta.phase].own_gates
    if own_gates and run.config.gate.random_drop == "never":
        of = "flops" if calibrated else run.config.scale.of
        mind = strays(summary, of, calibrated=calibrated)
        print(f"{mind}\n" if mind else "", end="")
    if plain is not None:
        print(f"The plain network that this run began from, after phase pretrain: {plain:.2f} %\n")


def _about(run: Run, workdir: epath.PathLike, split: Split, execution: Execution) -> dict[str, Any]:
    """What eval.json records of where an evaluation comes from."""
    config, meta = run.config, run.meta
    skips = config_lib.heeds_scale(config, meta.phase)
    about: dict[str, Any] = {"dataset": split.dataset, "split": split.name, "phase": meta.phase}
    about |= {"step": meta.step, "execution": execution if skips else "dense"}
    gated = run.arch.gated and PHASES[meta.phase].own_gates
    grown_here = gated and not (config.gates.init_from or config.joint.init_from)
    plain = plain_top1(workdir) if split.name == "test" and grown_here else None
    if run.calibration is not None:
        about["calibration"] = dict(run.calibration.about) | {"images": run.calibration.images}
    return about if plain is None else about | {"plain_top1_percent": plain}


def _grid(run: Run, scales: Sequence[float]) -> Sequence[float]:
    """The scales to evaluate at; says so where there is only one that matters."""
    if not config_lib.heeds_scale(run.config):
        print("This network is plain: it has no gates, so S is ignored and it is evaluated once.")
    elif not PHASES[run.meta.phase].own_gates:
        print("This run is in phase pretrain, in which all blocks are on: it is evaluated once.")
        return (1.0,)
    return scales


def plain_top1(workdir: epath.PathLike) -> float | None:
    """Top-1 (percent, test split) of the run at the end of phase `pretrain`, if it had one."""
    found = [
        line["top1_percent"]
        for line in writers.read(workdir)
        if line["kind"] == "eval" and line["phase"] == "pretrain"
    ]
    return found[-1] if found else None
