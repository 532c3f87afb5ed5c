"""A finished run, looked into: which sample uses which block at which S, and why.

    run = inspection.load("runs/digits")
    gates = run.gates(scales=(0.2, 0.6, 1.0))  # a row for every sample, S and block
    inspection.plot_usage_by_class(gates)

Tables are pandas DataFrames, plots are matplotlib figures; nothing is written.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from urnet_jax.evaluate import plots
from urnet_jax.evaluate.conditional import gate_kinds, plot_gate_kinds, plot_probabilities
from urnet_jax.evaluate.evaluation import Evaluation, summarize
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
from urnet_jax.evaluate.run import SWEEP, Run, load

__all__ = [
    "SWEEP", "Run", "distinct_paths", "easy_and_hard", "gate_kinds", "gate_table", "load",
    "plot_blocks", "plot_gate_kinds", "plot_logits", "plot_probabilities", "plot_sweep",
    "plot_top1", "plot_usage", "plot_usage_by_class", "right_and_wrong", "samples", "usage",
    "usage_by_class",
]  # fmt: skip

_MOST_PLOTTED_BLOCKS = 12


def at_scales(evaluation: Evaluation, scales: Sequence[float]) -> Evaluation:
    """The part of an evaluation at some S, of which it holds none, some or all.

    `gate_table` of many samples, blocks and S is large; of one S after another it is not.
    """
    rows = [k for k, held in enumerate(evaluation.scales) if np.isclose(held, scales).any()]
    names = ("predictions", "loss", "gates", "flops", "gate_logits", "correct", "counts")
    held = ((name, getattr(evaluation, name)) for name in names)
    kept = {name: array if array is None else array[rows] for name, array in held}
    scales = tuple(evaluation.scales[row] for row in rows)
    return dataclasses.replace(evaluation, scales=scales, **kept)


def plot_usage(evaluation: Evaluation) -> Figure:
    """The share of samples that use each block at each S (the paper's figure 4)."""
    return plots.plot_block_usage(
        evaluation.gates, evaluation.scales, evaluation.gate_groups, evaluation.arch.describe()
    )


def plot_blocks(evaluation: Evaluation, scale: float) -> Figure:
    """The share of samples that use each block at one S, below what that S gives and costs."""
    chosen: Any = at_scale(summarize(evaluation), scale)
    (row,) = chosen.itertuples()
    measure = evaluation.measure
    title = (
        f"S = {row.scale:g}: {measure.title} {getattr(row, measure.column):.2f} %, "
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
    return plots.plot_against_flops(summarize(evaluation), evaluation.arch.describe())
