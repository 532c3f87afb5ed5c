"""Measures what each S gives and takes here, which budgets and the server go by."""

import datetime
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from urnet_jax.data.splits import Split, examples
from urnet_jax.errors import UserError
from urnet_jax.evaluate import calibration, inspection
from urnet_jax.evaluate.run import Run
from urnet_jax.runs import profile as profile_lib
from urnet_jax.runs.bundle import Bundle, is_served
from urnet_jax.runs.profile import Profile
from urnet_jax.serve import budgets
from urnet_jax.serve.predictor import BATCH_SIZES, Predictor
from urnet_jax.version import __version__

ROUNDS = 5
"""Over all S and batch sizes; the median of a point's times counts."""

LEAST_S = 0.02
"""For which a point is measured in each round."""


def profile_workdir(
    workdir: epath.PathLike,
    *,
    which: Literal["newest", "best"] | int = "newest",
    images: int = 2000,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    data_dir: str = "",
    progress: bool = True,
) -> Profile | None:
    """Measures a calibrated checkpoint of a run, keeps the result with it and prints it.

    Nothing is measured of a network that is not served, see `bundle.is_served`.

    Top-1 is that on training images that calibration held back: they served to train the weights,
    and say how S compare, not how well the network does on new images.

    Args:
      workdir: of the run.
      which: its checkpoint, see `load.load_network`.
      images: on which top-1 is measured; fewer where there are fewer.
      batch_sizes: whose times are measured.
      data_dir: where the dataset lies now; by default where the config says.
      progress: shows a progress bar on stderr if that is a terminal.

    Raises:
      UserError: the workdir holds no calibrated network, or an argument is not usable.
    """
    run = inspection.load(workdir, which, data_dir)
    if not is_served(run.arch):
        print("Times are not measured: a network that says a class for each pixel is not served.")
        return None
    if run.calibration is None:
        raise UserError(f"The network in {workdir} is not calibrated: run urnet calibrate.")
    found = measure(run, calibration.halves(run, images)[1], batch_sizes, progress=progress)
    path = profile_lib.write(workdir, run.meta.step, found)
    _show(found)
    print(path)
    return found


def measure(
    run: Run, split: Split, batch_sizes: Sequence[int], *, progress: bool = False
) -> Profile:
    """What each calibrated S gives on a split's images, and what it takes on this device.

    Args:
      run: whose network it is.
      split: images with their labels.
      batch_sizes: whose times are measured.
      progress: shows a progress bar on stderr if that is a terminal.
    """
    assert run.calibration is not None
    scales = run.calibration.scales
    evaluation = run.evaluate(scales, split)
    bundle = Bundle(run.meta, run.params, run.batch_stats, run.calibration)
    predictor = Predictor(bundle, batch_sizes=batch_sizes)
    pixels, _ = examples(split, np.arange(min(split.num_examples, 8 * max(batch_sizes))))
    seconds = _times(predictor, pixels.astype(np.float32), scales, progress)
    return Profile(
        scales=scales,
        top1_percent=tuple(evaluation.measured.tolist()),
        flops_shares=tuple((evaluation.flops.mean(axis=1) / evaluation.full_flops).tolist()),
        images=len(evaluation.index),
        batch_sizes=predictor.batch_sizes,
        seconds=tuple(map(tuple, seconds.tolist())),
        about={
            "device": budgets.device(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "dataset": split.dataset,
            "split": split.name,
            "urnet_jax": __version__,
            "jax": jax.__version__,
        },
    )


def _times(
    predictor: Predictor, images: np.ndarray, scales: Sequence[float], progress: bool
) -> np.ndarray:
    """Seconds of a call at each S (rows) and batch size (columns), medians of rounds in turn."""
    sizes = predictor.batch_sizes
    found, turn = np.zeros((ROUNDS, len(scales), len(sizes))), 0
    hidden = None if progress else True
    total = len(sizes) + ROUNDS * len(sizes) * len(scales)
    with tqdm(total=total, desc="measure times", disable=hidden, leave=False) as bar:
        for size in sizes:
            predictor.warm_up((size,))
            bar.update()
        for r in range(ROUNDS):
            for k, scale in enumerate(scales):
                for n, size in enumerate(sizes):
                    # Other images each time: what a batch takes hangs on its images.
                    rows = (turn + np.arange(size)) % len(images)
                    found[r, k, n] = _seconds(predictor, images[rows], scale)
                    turn += size
                    bar.update()
    return np.median(found, axis=0)


def _seconds(predictor: Predictor, images: np.ndarray, scale: float) -> float:
    """Of one call, the mean over as many as take `LEAST_S`."""
    asked, calls = np.full(len(images), scale, np.float32), 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < LEAST_S or not calls:
        predictor.predict(images, asked)
        calls += 1
    return passed / calls


def _show(found: Profile) -> None:
    """Prints the table of a profile."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("S", "top-1, %", *(f"{size}" for size in found.batch_sizes)):
        table.add_column(header, justify="right")
    rows: Any = zip(found.scales, found.top1_percent, found.seconds, strict=True)
    for scale, top1, seconds in rows:
        table.add_row(f"{scale:g}", f"{top1:.2f}", *(f"{1000 * s:.3g}" for s in seconds))
    console = Console()
    console.print(
        f"Top-1 on {found.images} images of {found.about['dataset']} {found.about['split']}, and "
        f"milliseconds for batches of so many on {found.about['device']}",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    console.print(table)
