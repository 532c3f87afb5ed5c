"""Calibration: one logit offset for each S, so that S is the share of FLOPs that is used.

Training brings usage near S; where it ends is a balance of losses. An offset that all gates' logits
share at one S moves usage alone, and bisection finds the one that meets S on given images.
"""

import datetime
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from jaxtyping import Float64
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from urnet_jax import config as config_lib
from urnet_jax.data import splits
from urnet_jax.data.splits import Split
from urnet_jax.errors import UserError
from urnet_jax.evaluate import inspection
from urnet_jax.evaluate.evaluation import Offset, check_scales, evaluate
from urnet_jax.evaluate.run import Run, check_gates
from urnet_jax.evaluate.step import EvalStep
from urnet_jax.nets.cost import least_share
from urnet_jax.runs import calibration, profile
from urnet_jax.runs.calibration import Calibration
from urnet_jax.streams import Stream
from urnet_jax.version import __version__
from urnet_jax.xla.telling import telling

GRID = tuple(round(0.05 * n, 2) for n in range(1, 21))
"""Scales that are calibrated by default, beside the config's `eval.scales`; without those below
what the network uses whatever its gates do."""

FIRST, FINE = 0.5, 0.01
"""How far from 0 an offset is tried first; and how near it is known at the end."""

MET = 5e-4
"""How near a share counts as met: what is beyond it differs among other images anyway."""

ROUNDING = 1e-9
"""By which equal shares may differ."""

REACH = 10.0
"""How far from 0 an offset is looked for, beside the reach of a network's prior."""

Shares = Float64[np.ndarray, " k"]


def calibrate_workdir(
    workdir: epath.PathLike,
    *,
    which: Literal["newest", "best"] | int = "newest",
    scales: Sequence[float] | None = None,
    images: int = 2000,
    data_dir: str = "",
    progress: bool = True,
) -> Calibration:
    """Calibrates a run's checkpoint on training images, keeps the result with it and prints it.

    The test split is not looked at. Half of the images are used to find the offsets; the other half
    says how far S is from what is used.

    Args:
      workdir: of the run.
      which: its checkpoint, see `load.load_network`.
      scales: the grid of S, and S = 1; by default those of `GRID` and the config's `eval.scales`.
      images: to fit on; as many others are held back. Fewer where the training split has fewer.
      data_dir: where the dataset lies now; by default where the config says.
      progress: shows a progress bar on stderr if that is a terminal.

    Raises:
      UserError: the workdir holds no network with trained gates, or an argument is not usable.
    """
    if images < 1:
        raise UserError(f"images is {images}; expected at least 1 to fit on.")
    # With S = 1 among them, so that it stays the whole network.
    grid = check_scales([*scales, 1.0]) if scales is not None else None
    run = inspection.load(workdir, which, data_dir, calibrated=False)
    check_gates(run, workdir)
    if not config_lib.heeds_scale(run.config):
        raise UserError(
            f"The gates of the network in {workdir} do not see S (model.gate_scale is False), so "
            "that there is nothing to calibrate."
        )
    least = least_share(config_lib.evaluated(run.config))
    grid = grid or check_scales([s for s in GRID if s >= least] + [*run.config.eval.scales])
    fitted, unseen = halves(run, images)
    found = fit(run, grid, fitted, unseen, progress=progress)
    path = calibration.write(workdir, run.meta.step, found)
    if profile.remove(workdir, run.meta.step):
        print("Removed the times that were measured: they were of the offsets before.")
    _show(run, found)
    print(path)
    return found


def fit(
    run: Run, scales: Sequence[float], fitted: Split, unseen: Split, *, progress: bool = False
) -> Calibration:
    """The offsets by which `scales` are met on the images of one split; how well on another's.

    Args:
      run: whose network it is; a calibration that it has is not heeded.
      scales: ascending.
      fitted: images that are looked at for each step of the bisection.
      unseen: others.
      progress: shows a progress bar on stderr if that is a terminal.
    """
    hidden = None if progress else True
    step = telling(run.eval_step, "the evaluation") if progress else run.eval_step
    with tqdm(total=len(scales), desc="calibrate", unit="S", disable=hidden, leave=False) as bar:

        def shares(asked: Shares, offsets: Shares, split: Split = fitted) -> Shares:
            if split is fitted:  # The others are met.
                bar.update(len(scales) - len(asked) - bar.n)
            given = Calibration(tuple(asked.tolist()), tuple(offsets.tolist()), (), (), (), 0, 0)
            # What is looked for is the edge itself; others' images are seen as users will see them.
            plain = functools.partial(np.interp, xp=asked, fp=offsets)
            return _shares(
                run, step, given.scales, plain if split is fitted else given.offset, split
            )

        reach = REACH + float(getattr(run.arch, "gate_prior", 0.0))
        least = least_share(config_lib.evaluated(run.config))
        offsets, found, before = bisected(shares, np.array(scales), reach, least)
        on_unseen = shares(np.array(scales), offsets, unseen)
        middle = (np.array(scales[1:]) + scales[:-1]) / 2
        between = (
            shares(middle, np.interp(middle, scales, offsets), unseen) if middle.size else middle
        )
    return Calibration(
        scales=tuple(scales),
        offsets=tuple(offsets.tolist()),
        shares_before=tuple(before.tolist()),
        shares=tuple(found.tolist()),
        shares_unseen=tuple(on_unseen.tolist()),
        shares_between=tuple(between.tolist()),
        images=fitted.num_examples,
        images_unseen=unseen.num_examples,
        about=_about(fitted),
    )


def bisected(
    shares: Callable[[Shares, Shares], Shares], wanted: Shares, reach: float, least: float = 0.0
) -> tuple[Shares, Shares, Shares]:
    """Offsets from -reach to reach whose shares are nearest to the wanted ones.

    A share is taken to rise with its offset. Where it does not everywhere, what is returned is
    still the best that was seen, 0 included: the result is never worse than no offset. Of those
    seen that are as good, as where everything is open already, the nearest to 0 is taken.

    Args:
      shares: f(scales, offsets) -> shares; it is not asked again for those that are met.
      wanted: the scales, which are the shares that are wanted.
      reach: how far from 0 an offset may lie.
      least: the share that is used where all gates are closed; less cannot be met.

    Returns:
      The offsets, their shares, and the shares of offsets of 0.
    """
    best = np.zeros(len(wanted))
    before = found = shares(wanted, best)

    def is_too_much(now: Shares) -> Any:
        # All is closed at any offset that is low enough, of which the highest is looked for.
        return np.where(wanted <= least, now > least + MET, now >= wanted)

    # Outwards from 0, near which most offsets lie, until what is wanted is between two of them.
    too_much, step = is_too_much(found), FIRST
    low, high = np.where(too_much, -np.inf, 0.0), np.where(too_much, 0.0, np.inf)
    while True:
        # All is open at any offset that is large enough, of which the least is looked for.
        missed = (np.abs(found - wanted) > MET) | (wanted == 1) | (wanted <= least)
        missed &= (high - low > FINE) & (high > -reach) & (low < reach)
        if not missed.any():
            break
        down, up = np.maximum(high - step, -reach), np.minimum(low + step, reach)
        ahead = np.where(np.isinf(high), up, (low + high) / 2)
        ahead = np.where(np.isinf(low), down, ahead)
        ahead, now, step = np.where(missed, ahead, best), found.copy(), 2 * step
        now[missed] = shares(wanted[missed], ahead[missed])
        gain = np.abs(found - wanted) - np.abs(now - wanted)
        nearer = (gain > ROUNDING) | ((gain >= -ROUNDING) & (np.abs(ahead) < np.abs(best)))
        best, found = np.where(nearer, ahead, best), np.where(nearer, now, found)
        too_much = is_too_much(now)
        low, high = (
            np.where(missed & ~too_much, ahead, low), np.where(missed & too_much, ahead, high),
        )  # fmt: skip
    return best, found, before


def _shares(
    run: Run, step: EvalStep, scales: Sequence[float], offset: Offset, split: Split
) -> Shares:
    """The mean share of FLOPs at each S with its offset."""
    evaluation = evaluate(
        step, *run.variables, split, run.config, scales,
        min(run.config.eval.batch_size, split.num_examples), progress=False, mesh=run.mesh,
        offset=offset,
    )  # fmt: skip
    return evaluation.flops.mean(axis=1) / evaluation.full_flops


def halves(run: Run, images: int) -> tuple[Split, Split]:
    """Training images to fit on, and as many others, both by chance that hangs on the seed."""
    split = run.split("train")
    if split.num_examples < 2:
        raise UserError(f"{split.title} has one image; expected two or more to calibrate on.")
    count = min(images, split.num_examples // 2)
    rng = np.random.default_rng((Stream.CALIBRATION, run.config.seed))
    order = rng.permutation(split.num_examples)
    return splits.take(split, order[:count]), splits.take(split, order[count : 2 * count])


def _about(split: Split) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "dataset": split.dataset,
        "split": split.name,
        "device": jax.devices()[0].device_kind,
        "urnet_jax": __version__,
        "jax": jax.__version__,
    }


def _show(run: Run, found: Calibration) -> None:
    """Prints the table of a calibration."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("S, %", "used before, %", "offset", "used now, %", "on unseen images, %"):
        table.add_column(header, justify="right")
    rows = zip(
        found.scales, found.shares_before, found.offsets, found.shares, found.shares_unseen,
        strict=True,
    )  # fmt: skip
    for scale, before, offset, now, unseen in rows:
        row = [f"{100 * x:.1f}" for x in (scale, before, now, unseen)]
        table.add_row(row[0], row[1], f"{offset:+.2f}", *row[2:])
    console = Console()
    title = (
        f"{config_lib.evaluated(run.config).describe()}, step {run.meta.step}\n"
        f"Share of FLOPs on {found.images} images of "
        f"{found.about['dataset']} {found.about['split']}, and on {found.images_unseen} others"
    )
    console.print(title, soft_wrap=True, highlight=False)
    console.print(table)
    least = least_share(config_lib.evaluated(run.config))
    if min(found.scales) < least - MET:
        print(
            f"{100 * least:.1f} % always runs, whatever the gates do: a smaller S cannot be met.\n"
        )
    before = np.mean(np.abs(np.array(found.shares_before) - found.scales))
    between = ""
    if found.shares_between:
        between = f", {100 * found.error_between:.2f} there at S half-way between these"
    console.print(
        f"Mean distance from S: {100 * before:.2f} points before, {100 * found.error:.2f} on "
        f"images that were not fitted on{between}.", soft_wrap=True, highlight=False,
    )  # fmt: skip
