"""The evaluation of a run's checkpoint, from its folder to the table and the files."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import pandas as pd
from etils import epath

from urnet_jax import config as config_lib
from urnet_jax.data.splits import Split
from urnet_jax.errors import UserError, make_folder
from urnet_jax.evaluate import files
from urnet_jax.evaluate import static as static_line
from urnet_jax.evaluate.evaluation import Evaluation, check_scales, evaluate, summarize
from urnet_jax.evaluate.image_part import gains_for_people, gains_of_looking
from urnet_jax.evaluate.page import report as page_report
from urnet_jax.evaluate.run import Run
from urnet_jax.evaluate.step import make_eval_step
from urnet_jax.evaluate.table import print_table, strays
from urnet_jax.nets import network
from urnet_jax.nets.cost import least_share
from urnet_jax.nets.execution import choose
from urnet_jax.nets.mode import Execution, Mode
from urnet_jax.nets.tasks import measure_of
from urnet_jax.phases import PHASES
from urnet_jax.runs import calibration, writers
from urnet_jax.runs.load import load_network
from urnet_jax.xla.telling import telling


def evaluate_workdir(
    workdir: epath.PathLike, *, which: Literal["newest", "best"] | int = "newest",
    scales: Sequence[float] | None = None, split: str = "test", batch_size: int = 0,
    execution: Execution = "auto", data_dir: str | None = None,
    output: epath.PathLike | None = None, report: bool = False, calibrated: bool = True,
    static: Sequence[epath.PathLike] = (), image_part: bool = False,
) -> pd.DataFrame:  # fmt: skip
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
      report: also writes `page.report.make`'s report.html, which shows the evaluation.
      calibrated: uses the checkpoint's calibration, if it has one.
      static: folders of evaluations of plain networks, see `static.read`, which are drawn beside
        this one and compared with it at their costs.
      image_part: also says what gates gain by looking at the image, see
        `image_part.gains_of_looking`.

    Raises:
      UserError: the workdir holds no readable checkpoint, or an argument is not usable.
    """
    requested = None if scales is None else check_scales(scales)
    if batch_size < 0:
        raise UserError(f"batch_size is {batch_size}; expected at least 1, or 0 for the config's.")
    directory = epath.Path(output or workdir)
    run = _load(workdir, which, calibrated, data_dir)
    _check_asked(run, requested, image_part)
    make_folder(directory, "--output")
    opened = run.split(split)
    beside = static_line.read(static, dataset=opened.dataset, split=split) if static else None
    grid = _grid(run, requested or run.config.eval.scales)
    evaluation, chosen = _evaluated(run, opened, grid, execution, batch_size)
    about = _about(run, workdir, opened, chosen)
    gains = gains_of_looking(run, grid, opened, evaluation, batch_size) if image_part else None
    about |= {} if gains is None else {"image_part": gains.to_dict("records")}
    make = None
    if report:
        make = functools.partial(page_report.make, run, opened, evaluation, beside=beside)
    else:
        _remove_older_page(directory)
    paths = files.write(evaluation, directory, about, make, beside)
    summary = summarize(evaluation)
    _show(summary, run, opened, about)
    _show_beside(summary, beside, gains)
    print(*paths, sep="\n")
    return summary


def _check_asked(run: Run, scales: Sequence[float] | None, image_part: bool) -> None:
    """Refuses what this network cannot be asked."""
    if scales and not getattr(run.arch, "gate_scale", True):
        raise UserError(
            "--scales asks for some S, and the gates of this network do not see it "
            "(model.gate_scale is False): leave it out."
        )
    if image_part and not run.has_trained_gates:
        raise UserError(
            "--image_part asks what trained gates gain by looking at the image, and this network "
            "has none that decide: leave it out."
        )


def _load(
    workdir: epath.PathLike, which: Literal["newest", "best"] | int, calibrated: bool,
    data_dir: str | None,
) -> Run:  # fmt: skip
    """A run's network, of whatever phase, with its calibration if that is wanted."""
    network = load_network(workdir, which)
    if data_dir:
        network.meta.config.data.dir = data_dir
    return Run(*network, calibration.read(workdir, network.meta.step) if calibrated else None)


def _evaluated(
    run: Run, split: Split, grid: Sequence[float], execution: Execution, batch_size: int
) -> tuple[Evaluation, Execution]:
    """The evaluation, and the execution that batches of this size have on one device."""
    size = min(batch_size or run.config.eval.batch_size, split.num_examples)
    step = telling(
        make_eval_step(run.config, run.meta.phase, execution, run.mesh), "the evaluation"
    )
    evaluation = evaluate(
        step, *run.variables, split, run.config, grid, size, mesh=run.mesh, offset=run.offset
    )
    share = -(-size // jax.local_device_count())
    return evaluation, choose(run.arch, Mode(execution=execution), share).execution


def _remove_older_page(directory: epath.Path) -> None:
    """It would show another evaluation than the new files beside it."""
    older = directory / "report.html"
    if older.exists():
        older.unlink()
        print(f"Removed {older}, which shows an older evaluation; --report writes a new one.")


def _show(summary: pd.DataFrame, run: Run, split: Split, about: Mapping[str, Any]) -> None:
    """Prints the table of an evaluation, and what the plain network that it began from had."""
    images = f"{summary['examples'].iloc[0]} images of {split.dataset} {split.name}"
    step = f"step {run.meta.step} ({run.meta.phase})"
    calibrated = run.calibration is not None
    held = ", calibrated" if calibrated else ""
    title = f"{config_lib.evaluated(run.config).describe()}\n{images}, {step}{held}"
    print_table(summary, title, getattr(run.arch, "gate_noun", "blocks"))
    left_out = split.num_examples - int(summary["examples"].iloc[0])
    if left_out and split.maps:
        print(f"Mind: {left_out} of {split.num_examples} images are left out: none of their pixels "
              "has a label, or they cannot be decoded.")  # fmt: skip
    if run.has_trained_gates and config_lib.heeds_scale(run.config):
        of = "flops" if calibrated else run.config.scale.of
        outside = run.calibration.outside(summary["scale"]) if run.calibration else []
        if outside:
            named = ", ".join(f"S = {scale:g}" for scale in outside)
            print(f"Mind: outside of what was calibrated: {named}, with the offset of the nearest "
                  "S that was calibrated. Name it, beside all others that are used, in `urnet "
                  "calibrate --scales=...`, which replaces what was calibrated.")  # fmt: skip
        least = least_share(config_lib.evaluated(run.config))
        mind = strays(summary, of, calibrated=calibrated and not outside, least=least)
        print(f"{mind}\n" if mind else "", end="")
    if (plain := about.get(f"plain_{measure_of(summary.columns).column}")) is not None:
        print(f"The plain network that this run began from, after phase pretrain: {plain:.2f} %\n")


def _show_beside(
    summary: pd.DataFrame, beside: pd.DataFrame | None, gains: pd.DataFrame | None
) -> None:
    """Prints what plain networks of other sizes had, and the same network without its eyes."""
    if beside is not None:
        sentences = static_line.sentences(static_line.compare(summary, beside))
        print("Plain networks of several sizes:", *sentences, "", sep="\n")
    if gains is not None:
        print(f"{gains_for_people(gains)}\n")


def _about(run: Run, workdir: epath.PathLike, split: Split, execution: Execution) -> dict[str, Any]:
    """What eval.json records of where an evaluation comes from."""
    config, meta = run.config, run.meta
    skips = config_lib.skips(config, meta.phase)
    about: dict[str, Any] = {"dataset": split.dataset, "split": split.name, "phase": meta.phase}
    about |= {"step": meta.step, "execution": execution if skips else "dense"}
    gated = run.arch.gated and PHASES[meta.phase].own_gates
    grown_here = gated and not (config.gates.init_from or config.joint.init_from)
    measure = network.task(run.arch).measure.column
    plain = plain_percent(workdir, measure) if split.name == "test" and grown_here else None
    if run.calibration is not None:
        about["calibration"] = dict(run.calibration.about) | {"images": run.calibration.images}
    return about if plain is None else about | {f"plain_{measure}": plain}


def _grid(run: Run, scales: Sequence[float]) -> Sequence[float]:
    """The scales to evaluate at; says so where there is only one that matters."""
    if not config_lib.skips(run.config):
        print("This network is plain: it has no gates, so S is ignored and it is evaluated once.")
    elif not PHASES[run.meta.phase].own_gates:
        print("This run is in phase pretrain, in which all blocks are on: it is evaluated once.")
        return (1.0,)
    elif not config_lib.heeds_scale(run.config):
        print("The gates of this network see the image alone: it is evaluated once.")
        return (1.0,)
    return scales


def plain_percent(workdir: epath.PathLike, measure: str) -> float | None:
    """What the run reached at the end of phase `pretrain` on the test split, if it had one.

    `measure` is the column of its evaluations, as `top1_percent`.
    """
    found = [
        line[measure]
        for line in writers.read(workdir)
        if line["kind"] == "eval" and line["phase"] == "pretrain"
    ]
    return found[-1] if found else None
