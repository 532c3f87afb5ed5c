"""A finished run, looked into: which sample uses which block at which S, and why.

    run = inspection.load("runs/digits")
    gates = run.gates(scales=(0.2, 0.6, 1.0))  # a row for every sample, S and block
    inspection.plot_usage_by_class(gates)

Tables are pandas DataFrames, plots are matplotlib figures; nothing is written.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
import pandas as pd
from etils import epath
from jax.sharding import Mesh
from matplotlib.figure import Figure

from urnet_jax.config import Config, architecture
from urnet_jax.data import splits
from urnet_jax.data.sources import open_split
from urnet_jax.data.splits import Split, examples
from urnet_jax.errors import UserError
from urnet_jax.evaluate import plots
from urnet_jax.evaluate.evaluation import Evaluation, evaluate, summarize
from urnet_jax.evaluate.gate_tables import (
    at_scale,
    distinct_paths,
    easy_and_hard,
    gate_table,
    right_and_wrong,
    samples,
    usage,
    usage_by_class,
)  # fmt: skip
from urnet_jax.evaluate.step import EvalStep, make_eval_step
from urnet_jax.nets.contract import Description
from urnet_jax.nets.network import Tree
from urnet_jax.phases import PHASES
from urnet_jax.runs import calibration
from urnet_jax.runs.calibration import Calibration
from urnet_jax.runs.load import load_network
from urnet_jax.runs.meta import Meta
from urnet_jax.xla import sharding

__all__ = [
    "SWEEP", "Run", "distinct_paths", "easy_and_hard", "gate_table", "load", "plot_blocks",
    "plot_logits", "plot_sweep", "plot_top1", "plot_usage", "plot_usage_by_class",
    "right_and_wrong", "samples", "usage", "usage_by_class",
]  # fmt: skip

SWEEP = tuple(np.round(np.linspace(0, 1, 21), 2).tolist())
"""Scales at which a sweep looks."""

_MOST_PLOTTED_BLOCKS = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A network as a run left it, and the data that it was trained for.

    Attributes:
      meta: of the checkpoint, the run's config included.
      params: the network's parameters.
      batch_stats: BatchNorm's running statistics.
      calibration: of the checkpoint, if it has one: by it S is the share of FLOPs that is used.
    """

    meta: Meta
    params: Tree
    batch_stats: Tree
    calibration: Calibration | None = None

    def __repr__(self) -> str:
        # Without it a cell that ends with a run would print every weight.
        return f"Run({self.arch.describe()}, step {self.meta.step}, phase {self.meta.phase})"

    @property
    def config(self) -> Config:
        return self.meta.config

    @property
    def arch(self) -> Description:
        return architecture(self.config)

    def split(self, name: str = "test") -> Split:
        """The split `train` or `test`; a UserError where its data is not in `data.dir`."""
        return open_split(self.config.data, name)

    def subset(self, count: int, split: str | Split = "test") -> Split:
        """`count` examples spread evenly over a split, for a quick look, or all if it has no more.

        Raises:
          UserError: `count` is not positive.
        """
        split = self.split(split) if isinstance(split, str) else split
        if count < 1:
            raise UserError(f"The subset was given {count} examples; expected 1 or more.")
        if count >= split.num_examples:
            return split
        chosen = np.linspace(0, split.num_examples - 1, count).round().astype(int)
        return splits.take(split, chosen)

    @functools.cached_property
    def mesh(self) -> Mesh | None:
        """All devices of this process, which share each batch; None where there is but one."""
        devices = sharding.in_order(jax.local_devices())
        return Mesh(devices, ("data",)) if len(devices) > 1 else None

    @functools.cached_property
    def variables(self) -> tuple[Tree, Tree]:
        """`params` and `batch_stats`, on each of those devices."""
        held = self.params, self.batch_stats
        return held if self.mesh is None else sharding.replicate(held, self.mesh)

    @functools.cached_property
    def eval_step(self) -> EvalStep:
        """The evaluation of a batch, compiled once."""
        # Kept, for its compilation takes longer than a few thousand small images.
        return make_eval_step(self.config, self.meta.phase, mesh=self.mesh)

    def evaluate(
        self, scales: Sequence[float] | None = None, split: str | Split = "test"
    ) -> Evaluation:
        """What the network did with each example at each scale, the gates' logits included.

        Args:
          scales: by default the config's `eval.scales`.
          split: by its name, or opened.
        """
        split = self.split(split) if isinstance(split, str) else split
        grid = self.config.eval.scales if scales is None else scales
        size = min(self.config.eval.batch_size, split.num_examples)
        return evaluate(
            self.eval_step, *self.variables, split, self.config, grid, size,
            progress=False, mesh=self.mesh, calibration=self.calibration,
        )  # fmt: skip

    def gates(
        self, scales: Sequence[float] | None = None, split: str | Split = "test"
    ) -> pd.DataFrame:
        """`gate_table` of `evaluate`."""
        return gate_table(self.evaluate(scales, split))

    def sweep(
        self, sample: int, scales: Sequence[float] = SWEEP, split: str | Split = "test"
    ) -> pd.DataFrame:
        """The gates of one example as S goes from one end to the other, as `gate_table` gives them.

        Args:
          sample: its number in the whole split, also where `split` is a subset.
          scales: by default from 0 to 1 by 0.05.
          split: by its name, or opened.

        Raises:
          UserError: the split has no such example.
        """
        split = self.split(split) if isinstance(split, str) else split
        return self.gates(scales, splits.take(split, splits.places(split, np.array([sample]))))

    def plot_samples(
        self, table: pd.DataFrame, split: str | Split = "test", columns: int = 8
    ) -> Figure:
        """The images of the rows of `samples` or of a choice of them, in order, with captions.

        These say the class, the prediction where it is wrong, and the blocks used.
        """
        split = self.split(split) if isinstance(split, str) else split
        images, _ = examples(split, splits.places(split, table["sample"].to_numpy()))
        rows: Any = table.itertuples()
        captions = [
            f"#{row.sample}: class {row.label}"
            + ("" if row.correct else f", said {row.prediction}")
            + f"\n{row.blocks} blocks"
            for row in rows
        ]
        if "prediction_at_less" in table:
            said = table["prediction_at_less"]
            captions = [
                f"{c}\nsaid {p} at the lower S" for c, p in zip(captions, said, strict=True)
            ]
        return plots.plot_images(images, captions, columns)


def load(
    workdir: epath.PathLike, which: Literal["newest", "best"] | int = "newest", data_dir: str = ""
) -> Run:
    """A run's network.

    Args:
      workdir: of the run; nothing else is needed, but the data where the network is to see some.
      which: its checkpoint, see `load.load_network`.
      data_dir: where the dataset lies now; by default where the config says.

    Raises:
      UserError: the workdir holds no such checkpoint, the network has no trained gates, or its
        blocks are dropped at random.
    """
    meta, params, batch_stats = load_network(workdir, which)
    if not (architecture(meta.config).gated and PHASES[meta.phase].own_gates):
        kind = "of phase pretrain" if architecture(meta.config).gated else "of a plain network"
        raise UserError(
            f"The checkpoint of step {meta.step} in {workdir} is {kind}, which has no trained "
            "gates to look into: name the workdir of a run that has reached phase gates."
        )
    if meta.config.gate.random_drop != "never":
        raise UserError(
            f"In {workdir} chance decides which blocks of the network run (gate.random_drop) and "
            "says nothing of a sample: look at what evaluate.py shows, top-1 and usage."
        )
    if data_dir:
        meta.config.data.dir = data_dir
    return Run(meta, params, batch_stats, calibration.read(workdir, meta.step))


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


def plot_usage(evaluation: Evaluation) -> Figure:
    """The share of samples that use each block at each S (the paper's figure 4)."""
    return plots.plot_block_usage(
        evaluation.gates, evaluation.scales, evaluation.gate_groups, evaluation.arch.describe()
    )


def plot_blocks(evaluation: Evaluation, scale: float) -> Figure:
    """The share of samples that use each block at one S, below what that S gives and costs."""
    chosen: Any = at_scale(summarize(evaluation), scale)
    (row,) = chosen.itertuples()
    title = (
        f"S = {row.scale:g}: top-1 {row.top1_percent:.2f} %, "
        f"{100 * row.usage_mean:.1f} % of the blocks, {100 * row.flops_share:.1f} % of the FLOPs"
    )
    usage = evaluation.gates[row.Index].mean(axis=0, dtype=np.float64)
    return plots.plot_bars(usage, evaluation.gate_groups, title)


def plot_logits(gates: pd.DataFrame) -> Figure:
    """How the logits of each block's gate move with S: the median and nine samples of ten.

    Of more than 12 blocks those are shown whose median moves most.
    """
    by_block: Any = gates.groupby(["block", "scale"])["gate_logit"]
    bands = pd.DataFrame({
        name: by_block.quantile(q) for name, q in (("low", 0.05), ("middle", 0.5), ("high", 0.95))
    })  # fmt: skip
    middle = bands["middle"].unstack("scale")
    moves = middle.max(axis=1) - middle.min(axis=1)
    shown = moves.nlargest(_MOST_PLOTTED_BLOCKS).index.sort_values()
    return plots.plot_bands(bands.loc[shown], "S", "gate logit")


def plot_usage_by_class(gates: pd.DataFrame, scale: float | None = None) -> Figure:
    """`usage_by_class` as a map; at one S, the share of a class's samples that use each block."""
    if scale is not None:
        table = usage(at_scale(gates, scale), by="label")
        return plots.plot_map(table, "block, in network order", "class", "samples using\nit, %")
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
