"""A finished run, looked into: which sample uses which block at which S, and why.

    run = inspection.load("runs/digits")
    gates = run.gates(scales=(0.2, 0.6, 1.0))  # a row for every sample, S and block
    inspection.plot_usage_by_class(gates)

Tables are pandas DataFrames, plots are matplotlib figures; nothing is written.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from etils import epath
from matplotlib.figure import Figure

from urnet_jax import checkpoint, data, plots, steps
from urnet_jax.architecture import Architecture
from urnet_jax.config import Config, architecture
from urnet_jax.errors import UserError
from urnet_jax.evaluation import Evaluation, evaluate, summarize
from urnet_jax.meta import Meta
from urnet_jax.state import Tree

SWEEP = tuple(np.round(np.linspace(0, 1, 21), 2).tolist())
"""Scales at which a sweep looks."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A network as a run left it, and the data that it was trained for.

    Attributes:
      meta: of the checkpoint, the run's config included.
      params: the network's parameters.
      batch_stats: BatchNorm's running statistics.
    """

    meta: Meta
    params: Tree
    batch_stats: Tree

    @property
    def config(self) -> Config:
        return self.meta.config

    @property
    def arch(self) -> Architecture:
        return architecture(self.config)

    def split(self, name: str = "test") -> data.Split:
        """The split `train` or `test`; a UserError where its data is not in `data.dir`."""
        return data.open_split(self.config.data, name)

    def evaluate(
        self, scales: Sequence[float] | None = None, split: str | data.Split = "test"
    ) -> Evaluation:
        """What the network did with each example at each scale, the gates' logits included.

        Args:
          scales: by default the config's `eval.scales`.
          split: by its name, or opened.
        """
        split = self.split(split) if isinstance(split, str) else split
        step = steps.make_eval_step(self.config, self.meta.phase, with_gate_logits=True)
        grid = self.config.eval.scales if scales is None else scales
        size = min(self.config.eval.batch_size, split.num_examples)
        return evaluate(
            step, self.params, self.batch_stats, split, self.config, grid, size, progress=False
        )

    def gates(
        self, scales: Sequence[float] | None = None, split: str | data.Split = "test"
    ) -> pd.DataFrame:
        """`gate_table` of `evaluate`."""
        return gate_table(self.evaluate(scales, split))

    def sweep(
        self, sample: int, scales: Sequence[float] = SWEEP, split: str | data.Split = "test"
    ) -> pd.DataFrame:
        """The gates of one example as S goes from one end to the other, as `gate_table` gives them.

        Raises:
          UserError: the split has no such example.
        """
        split = self.split(split) if isinstance(split, str) else split
        if not 0 <= sample < split.num_examples:
            raise UserError(
                f"The sample is {sample}; the split {split.name} of {split.dataset} has 0 to "
                f"{split.num_examples - 1}."
            )
        image, label = data.examples(split, np.array([sample]))
        alone = dataclasses.replace(split, num_examples=1, images=image, labels=label, source=None)
        return self.gates(scales, alone).assign(sample=sample)

    def plot_samples(
        self, table: pd.DataFrame, split: str | data.Split = "test", columns: int = 8
    ) -> Figure:
        """The images of `samples`' rows, in order, each with its class, prediction and blocks."""
        split = self.split(split) if isinstance(split, str) else split
        images, _ = data.examples(split, table["sample"].to_numpy())
        rows: Any = table.itertuples()
        captions = [
            f"#{row.sample}: class {row.label}"
            + ("" if row.correct else f", said {row.prediction}")
            + f"\n{row.blocks} blocks"
            for row in rows
        ]
        return plots.plot_images(images, captions, columns)


def load(
    workdir: epath.PathLike, which: Literal["newest", "best"] | int = "newest", data_dir: str = ""
) -> Run:
    """A run's network.

    Args:
      workdir: of the run; nothing else is needed, but the data where the network is to see some.
      which: its checkpoint, see `checkpoint.load_for_evaluation`.
      data_dir: where the dataset lies now; by default where the config says.

    Raises:
      UserError: the workdir holds no such checkpoint, or the network has no trained gates.
    """
    meta, params, batch_stats = checkpoint.load_for_evaluation(workdir, which)
    if not meta.config.model.gated or meta.phase == "pretrain":
        kind = "of phase pretrain" if meta.config.model.gated else "of a plain network"
        raise UserError(
            f"The checkpoint of step {meta.step} in {workdir} is {kind}, which has no trained "
            "gates to look into: name the workdir of a run that has reached phase gates."
        )
    if data_dir:
        meta.config.data.dir = data_dir
    return Run(meta, params, batch_stats)


def at_scales(evaluation: Evaluation, scales: Sequence[float]) -> Evaluation:
    """The part of an evaluation at some S, of which it holds none, some or all.

    `gate_table` of many samples, blocks and S is large; of one S after another it is not.
    """
    rows = [k for k, held in enumerate(evaluation.scales) if np.isclose(held, scales).any()]
    names = ("predictions", "loss", "gates", "flops", "gate_logits")
    held = {name: getattr(evaluation, name) for name in names}
    kept = {name: array if array is None else array[rows] for name, array in held.items()}
    return dataclasses.replace(
        evaluation, scales=tuple(evaluation.scales[row] for row in rows), **kept
    )


def gate_table(evaluation: Evaluation) -> pd.DataFrame:
    """A row for every S, sample and block.

    Columns: `sample` (its number in the split), `label`, `prediction`, `scale` (S), `block` (from
    1, in network order), `gate` (1 where the sample used the block), `gate_logit` (0 and above
    opens it) and `flops` (of the whole sample at that S).
    """
    k, n, blocks = evaluation.gates.shape
    logits = evaluation.gate_logits

    def by_sample(values: np.ndarray) -> np.ndarray:
        return np.repeat(np.broadcast_to(values, (k, n)).ravel(), blocks)

    return pd.DataFrame(
        {
            "sample": by_sample(evaluation.index),
            "label": by_sample(evaluation.labels),
            "prediction": by_sample(evaluation.predictions),
            "scale": np.repeat(np.asarray(evaluation.scales), n * blocks),
            "block": np.tile(np.arange(1, blocks + 1), k * n),
            "gate": evaluation.gates.ravel(),
            "gate_logit": np.nan if logits is None else logits.ravel(),
            "flops": by_sample(evaluation.flops),
        }
    )


def samples(gates: pd.DataFrame) -> pd.DataFrame:
    """A row for every sample and S: `label`, `prediction`, `correct`, `blocks` used, `flops`."""
    grouped = gates.groupby(["sample", "scale"], sort=True)
    table = grouped[["label", "prediction", "flops"]].first()
    table["blocks"] = grouped["gate"].sum()
    table["correct"] = table["label"] == table["prediction"]
    return table.reset_index()


def usage(gates: pd.DataFrame, by: str = "scale") -> pd.DataFrame:
    """The share of samples that use each block (columns), by `scale` (the paper's figure 4) or
    another column, as `label`.
    """  # fmt: skip
    return gates.pivot_table(index=by, columns="block", values="gate", aggfunc="mean")


def usage_by_class(gates: pd.DataFrame) -> pd.DataFrame:
    """The mean share of blocks that samples of each class (rows) use at each S (columns)."""
    return gates.pivot_table(index="label", columns="scale", values="gate", aggfunc="mean")


def distinct_paths(gates: pd.DataFrame) -> pd.Series:
    """How many different sets of blocks samples take, by S; 1 where gates heed S alone."""
    paths = gates.pivot(index=["scale", "sample"], columns="block", values="gate")
    found = {scale: len(rows.drop_duplicates()) for scale, rows in paths.groupby(level="scale")}
    return pd.Series(found, name="paths").rename_axis("scale")


def easy_and_hard(gates: pd.DataFrame, scale: float, count: int = 8) -> pd.DataFrame:
    """The samples that use the fewest and the most blocks at one S (the paper's figure 6).

    Args:
      gates: of `gate_table`.
      scale: one of its S.
      count: of each kind, at most half of all; of equals those that come first in the split.

    Returns:
      `samples`' rows, with a column `kind`: easy or hard; the easiest and the hardest first.
    """
    table = _at(samples(gates), scale)
    count = min(count, len(table) // 2)
    by_blocks = table.sort_values(["blocks", "sample"])
    hard = by_blocks.sort_values(["blocks", "sample"], ascending=[False, True]).head(count)
    easy = by_blocks[~by_blocks["sample"].isin(hard["sample"])].head(count)
    return pd.concat([easy.assign(kind="easy"), hard.assign(kind="hard")], ignore_index=True)


def right_and_wrong(
    gates: pd.DataFrame, right_at: float = 0.8, wrong_at: float = 0.6
) -> pd.DataFrame:
    """`samples`' rows at `right_at` of those right there and wrong at `wrong_at` (figure 7)."""
    table = samples(gates)
    right, wrong = _at(table, right_at), _at(table, wrong_at)
    lost = wrong.loc[~wrong["correct"], ["sample", "prediction"]]
    lost = lost.rename(columns={"prediction": "prediction_at_less"})
    return right[right["correct"]].merge(lost, on="sample")


def _at(table: pd.DataFrame, scale: float) -> pd.DataFrame:
    chosen = table.loc[np.isclose(table["scale"], scale)]
    if chosen.empty:
        held = ", ".join(f"{known:g}" for known in sorted(table["scale"].unique()))
        raise UserError(f"The scale is {scale:g}; the table holds {held}.")
    return chosen


def plot_usage(evaluation: Evaluation) -> Figure:
    """The share of samples that use each block at each S (the paper's figure 4)."""
    stages = [stage.num_blocks for stage in evaluation.arch.stages]
    return plots.plot_block_usage(
        evaluation.gates, evaluation.scales, stages, evaluation.arch.describe()
    )


def plot_usage_by_class(gates: pd.DataFrame) -> Figure:
    """`usage_by_class` as a map."""
    table = usage_by_class(gates)
    return plots.plot_map(table, "S", "class", "blocks that a\nsample uses, %")


def plot_sweep(sweep: pd.DataFrame, width: float | None = None) -> Figure:
    """Which blocks one sample uses as S rises, from `Run.sweep`; `width` is in inches."""
    table = sweep.pivot_table(index="scale", columns="block", values="gate")
    figure = plots.plot_map(table, "block, in network order", "S", "used, %", width, 0.21)
    rows: Any = samples(sweep).itertuples()
    axes, colours = figure.axes
    colours.remove()  # Used or not: no scale of colours is needed.
    for height, row in enumerate(rows):
        axes.text(
            1.02, height, f"said {row.prediction}", transform=axes.get_yaxis_transform(),
            va="center", fontsize=7, color="black" if row.correct else "#b3261e",
            parse_math=False,
        )  # fmt: skip
    title = f"#{sweep['sample'].iloc[0]}: class {sweep['label'].iloc[0]}"
    axes.set_title(title, fontsize=9, parse_math=False)
    return figure


def plot_top1(evaluation: Evaluation) -> Figure:
    """Top-1 against FLOPs, a point for every S."""
    return plots.plot_top1_vs_flops(summarize(evaluation), evaluation.arch.describe())
