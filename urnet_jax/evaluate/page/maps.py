"""The part of `report.html` that shows what a network for dense prediction says of images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from urnet_jax.data.splits import Split
from urnet_jax.evaluate import maps
from urnet_jax.evaluate.evaluation import Evaluation
from urnet_jax.evaluate.page import gates
from urnet_jax.evaluate.page.pieces import Paragraph, Piece, Plot, Section, Table
from urnet_jax.evaluate.run import Run

_WIDTH = 10.2
_MOST_SCALES = 4


def sections(run: Run, split: Split, evaluation: Evaluation) -> list[Section]:
    """Gates, classes by S, and images: those that cost least and most, and go best and worst."""
    own = [gates.section(run.config, evaluation)] if run.has_trained_gates else []
    return [*own, _classes(split, evaluation), _pictures(run, split, evaluation)]


def _classes(split: Split, evaluation: Evaluation) -> Section:
    table = maps.by_class(evaluation, split.class_names)
    rows = [
        (str(name), *("–" if np.isnan(value) else f"{value:.1f}" for value in values))
        for name, values in zip(table.index, table.to_numpy(), strict=True)
    ]
    columns = ("Class", *(f"S = {scale:g}" for scale in evaluation.scales))
    about = Paragraph(
        "Intersection over union, in percent: the pixels in which the network and the truth both "
        "have the class, by those in which either has it. Their mean is the mIoU; a class that "
        "neither has anywhere is left out."
    )
    heading = "Which classes does a smaller S lose?" if len(columns) > 2 else "Classes"
    return Section(heading, [Table("IoU by class", columns, rows), about])


def _pictures(run: Run, split: Split, evaluation: Evaluation) -> Section:
    chosen = chosen_samples(evaluation)
    scales = spread(evaluation.scales, _MOST_SCALES)
    samples = [int(evaluation.index[row]) for row in chosen]
    shown = maps.predict(run, scales, samples, split)
    why = "; ".join(f"#{evaluation.index[row]}: {', '.join(of)}" for row, of in chosen.items())
    plot = Plot(
        maps.plot(shown, _WIDTH, [", ".join(reasons) for reasons in chosen.values()]),
        "For each image itself, its truth and what the network says, and below that red where it "
        "is wrong; black and grey pixels are not counted. Beside that, why the image is shown: "
        "most and fewest pixels right, least and most FLOPs are of the mean over S.",
        f"Pictures of {len(chosen)} images, each with its truth and the network's answers at S = "
        f"{', '.join(f'{scale:g}' for scale in scales)}. {why}.",
    )
    pieces: list[Piece] = [plot]
    return Section("What the network sees", pieces)


def chosen_samples(evaluation: Evaluation) -> dict[int, list[str]]:
    """Rows of images to be shown, each with what it is shown for; of equals the first."""
    right, cost = evaluation.right.mean(axis=0), evaluation.flops.mean(axis=0)
    lost: Any = evaluation.right[-1].astype(float) - evaluation.right[0]
    wanted = [("most pixels right", right.argmax()), ("fewest pixels right", right.argmin())]
    if len(evaluation.scales) > 1 and lost.max() > 0:
        wanted.append(("loses most by a smaller S", lost.argmax()))
    if np.ptp(cost) > 0:
        wanted += [("costs least", cost.argmin()), ("costs most", cost.argmax())]
    chosen: dict[int, list[str]] = {}
    for reason, row in wanted:
        chosen.setdefault(int(row), []).append(reason)
    return chosen


def spread(scales: Sequence[float], most: int) -> tuple[float, ...]:
    """At most so many of the scales, the first and the last among them, evenly in between."""
    places = np.unique(np.linspace(0, len(scales) - 1, min(most, len(scales))).round().astype(int))
    return tuple(scales[place] for place in places)
