"""The part of `report.html` that shows what single images and classes do."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Num

from urnet_jax.data.splits import Split, examples, places
from urnet_jax.evaluate import inspection, plots
from urnet_jax.evaluate.evaluation import Evaluation, summarize
from urnet_jax.evaluate.figures import thumbnail
from urnet_jax.evaluate.gate_tables import sample_table
from urnet_jax.evaluate.page.pieces import (
    Beside,
    Images,
    Paragraph,
    Picture,
    Piece,
    Plot,
    Section,
    Table,
    is_wide,
    width_of,
)
from urnet_jax.evaluate.run import Run

_MOST_CLASSES = 20
_MOST_LOST = 16
_ROUNDING = 1e-6
_RIGHT_AT, _WRONG_AT = 0.8, 0.6  # of the paper's figure 7


class Seen:
    """What images did in an evaluation of gates, ready to be shown; each method is a section."""

    def __init__(self, run: Run, split: Split, evaluation: Evaluation):
        self._run, self._split, self._evaluation = run, split, evaluation
        self._total = evaluation.num_gates
        self._lost = None  # where the grid lacks one of the two scales
        if len(inspection.at_scales(evaluation, (_RIGHT_AT, _WRONG_AT)).scales) == 2:
            table = self._samples(_RIGHT_AT, _WRONG_AT)
            self._lost = inspection.right_and_wrong(table, _RIGHT_AT, _WRONG_AT)
        # Blocks cost about the same; groups of channels of different stages do not.
        self._by: Literal["blocks", "flops"] = "blocks"
        if hasattr(evaluation.arch, "gate_noun"):
            self._by = "flops"
        spread = summarize(evaluation)[f"{self._by}_std"].to_numpy()
        self._widest = evaluation.scales[int(spread.argmax())]
        self._extremes: Any = None  # where at each S all images use equally many blocks
        if spread.max() > _ROUNDING:
            table = self._samples(self._widest)
            self._extremes = inspection.easy_and_hard(table, self._widest, by=self._by)

    def paths(self) -> Section:
        """How many paths there are, usage by class, and the images at both ends."""
        rows = []
        for scale, gates in zip(self._evaluation.scales, self._evaluation.gates, strict=True):
            _, counts = np.unique(gates, axis=0, return_counts=True)
            share = 100 * counts.max() / counts.sum()
            rows.append((f"{scale:g}", f"{len(counts):,}", f"{share:.1f}"))
        columns = "S", "Different\npaths", "Images on the\ncommonest, %"
        about = Paragraph(
            "A path is the set of blocks that an image uses. Where there is but one, the gates "
            "heed S alone; the more there are, the more they heed the image."
        )
        table = Table("Different paths at each S", columns, rows)
        maps = Beside(
            (self._by_class(), self._by_class_and_block()), wide=is_wide(len(rows), self._total)
        )
        pieces: list[Piece] = [maps, Beside((table, about))]
        if self._extremes is None:
            equal = {"blocks": "use equally many blocks", "flops": "cost the same"}[self._by]
            text = f"At each S all images {equal}: none is easier than another."
            pieces.append(Paragraph(text))
        else:
            pieces.append(Beside((self._group("easy"), self._group("hard"))))
        return Section("Do images take different paths?", pieces)

    def lost(self) -> Section:
        """The images that are right at one S and wrong at a smaller one."""
        heading = f"Right at S = {_RIGHT_AT:g}, wrong at S = {_WRONG_AT:g}"
        if self._lost is None:
            text = (
                f"Which images a smaller S loses is shown where both S = {_WRONG_AT:g} and S = "
                f"{_RIGHT_AT:g} are evaluated, which they were not here."
            )
            return Section(heading, [Paragraph(text)])
        if self._lost.empty:
            text = f"No image is right at S = {_RIGHT_AT:g} and wrong at S = {_WRONG_AT:g}."
            return Section(heading, [Paragraph(text)])
        shown, total = self._lost.head(_MOST_LOST), len(self._lost)
        count = "1 image is" if total == 1 else f"{total:,} images are"
        first = f"; the first {len(shown)} are shown" if total > len(shown) else ""
        caption = (
            f"{count} right at the one and wrong at the other{first}. Below an image: its class, "
            f"what the network said at S = {_WRONG_AT:g}, the blocks that it used at S = "
            f"{_RIGHT_AT:g}."
        )
        lines = [
            (f"at {_WRONG_AT:g}: {self._name(row.prediction_at_less)}", f"{row.blocks} blocks")
            for row in _rows(shown)
        ]
        return Section(heading, [Images(self._pictures(shown, lines), caption, many=True)])

    def sweep(self) -> Section:
        """What one image does as S goes from 0 to 1."""
        if self._lost is not None and not self._lost.empty:
            row, which = self._lost.iloc[:1], "the first of those above"
        elif self._extremes is not None:
            row, which = self._extremes.query("kind == 'hard'").iloc[:1], "the first hard one"
        else:
            row = self._samples(self._widest).iloc[:1]
            which = "the first of the split"
        sweep = self._run.sweep(int(row["sample"].iloc[0]), split=self._split)
        for column in ("label", "prediction"):
            sweep[column] = [self._short(label) for label in sweep[column]]
        blocks = inspection.samples(sweep)["blocks"]
        lines = [(f"image {row['sample'].iloc[0]}",)]
        picture = Images(self._pictures(row, lines), f"The image, {which}.")
        plot = Plot(
            inspection.plot_sweep(sweep, width_of(self._total)),
            "The blocks that the image uses (yellow) as S rises, and beside them the class that "
            "the network then says, red where it is wrong.",
            f"Map of one image's blocks by S: {blocks.iloc[0]} of {self._total} used at S = 0, "
            f"{blocks.iloc[-1]} at S = 1.",
        )
        beside = Beside((picture, plot), wide=is_wide(self._total))
        return Section("One image as S rises", [beside])

    def _samples(self, *scales: float) -> pd.DataFrame:
        return sample_table(inspection.at_scales(self._evaluation, scales))

    def _of_each_class(self, shares: Num[np.ndarray, "n m"], columns: Sequence) -> pd.DataFrame:
        """The means over the images of each class, in rows."""
        labels = self._evaluation.labels
        means = {x: shares[labels == x].mean(axis=0, dtype=np.float64) for x in np.unique(labels)}
        return pd.DataFrame.from_dict(means, orient="index", columns=list(columns))

    def _by_class(self) -> Plot:
        gates = self._evaluation.gates
        usage = self._of_each_class(gates.mean(axis=2).T, self._evaluation.scales)
        mean = 100 * usage.mean(axis=1).sort_values(kind="stable")
        least, most = (self._name(mean.index[end]) for end in (0, -1))
        usage, which = self._of_classes(usage)
        width = width_of(usage.shape[1])
        return Plot(
            plots.plot_map(usage, "S", "class", "blocks that an\nimage uses, %", width),
            f"The share of blocks that images of {which} use at each S.",
            f"Map of usage by class and S. Over all S images of {least} use the fewest blocks, "
            f"{mean.iloc[0]:.1f} %, and those of {most} the most, {mean.iloc[-1]:.1f} %.",
        )

    def _by_class_and_block(self) -> Plot:
        k = self._evaluation.scales.index(self._widest)
        usage = self._of_each_class(self._evaluation.gates[k], range(1, self._total + 1))
        spread = usage.max() - usage.min()
        usage, which = self._of_classes(usage)
        return Plot(
            plots.plot_map(
                usage, "block, in network order", "class", "images using\nit, %",
                width_of(self._total),
            ),
            f"The share of images of {which} that use each block at S = {self._widest:g}, the S at "
            "which images differ most.",
            f"Map of usage by class and block at S = {self._widest:g}. Classes differ most in "
            f"block {spread.idxmax()}, by {100 * spread.max():.1f} points.",
        )  # fmt: skip

    def _of_classes(self, usage: pd.DataFrame) -> tuple[pd.DataFrame, str]:
        """The rows of not too many classes, under their names, and which they are."""
        which, order = "each class", usage.mean(axis=1).sort_values(kind="stable").index
        if len(usage) > _MOST_CLASSES:
            half = _MOST_CLASSES // 2
            which = f"the {half} classes that use most (above) and the {half} that use least"
            usage = usage.loc[[*order[:half], *order[-half:]]]
        return usage.set_axis([self._short(label) for label in usage.index], axis="index"), which

    def _group(self, kind: str) -> Images:
        rows: Any = self._extremes[self._extremes["kind"] == kind]
        unit = {"blocks": "blocks", "flops": "FLOPs"}[self._by]
        few = "fewest" if self._by == "blocks" else "least"
        heading = {"easy": f"Easy: the {few} {unit}", "hard": f"Hard: the most {unit}"}[kind]
        caption = (
            f"{heading} at S = {self._widest:g}, the S at which images differ most. Of equals, "
            "those that come first in the split."
        )
        lines = [
            ("right" if row.correct else f"said {self._name(row.prediction)}",
             f"{row.blocks} blocks" if self._by == "blocks"
             else f"{100 * row.flops / self._evaluation.full_flops:.1f} % FLOPs")
            for row in _rows(rows)
        ]  # fmt: skip
        return Images(self._pictures(rows, lines), caption)

    def _pictures(self, table: pd.DataFrame, lines: Sequence[tuple[str, ...]]) -> list[Picture]:
        """The images of the table's rows, each with its class and then its lines below."""
        where = places(self._split, table["sample"].to_numpy())
        images, _ = examples(self._split, where)
        pictures = []
        for row, image, below in zip(_rows(table), images, lines, strict=True):
            name = self._name(row.label)
            alt = f"Image {row.sample} of the split: {name}."
            pictures.append(Picture(thumbnail(image), alt, (name, *below)))
        return pictures

    def _name(self, label: Any) -> str:
        names = self._split.class_names
        return names[int(label)] if names else f"class {label}"

    def _short(self, label: Any, most: int = 12) -> str:
        """The class for a plot, which has little room."""
        name = self._name(label).removeprefix("" if self._split.class_names else "class ")
        return name if len(name) <= most else name[: most - 1] + "…"


def _rows(table: pd.DataFrame) -> list[Any]:
    return list(table.itertuples())
