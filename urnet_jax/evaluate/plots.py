"""Pictures of evaluations: accuracy against FLOPs, which blocks are used at which S, images.

Figures are made through matplotlib's object interface, so that drawing one changes neither the
backend nor the current figure of the program or notebook that asks for it.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Num, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from urnet_jax.evaluate.figures import Curve, NotebookFigure, label_points
from urnet_jax.nets.tasks import measure_of

_LINE = "#1f5f8b"
_BAR = "#a9c6db"
_STATIC = "#8a5a00"
_MOST_NUMBERED_BLOCKS = 36
_MOST_NUMBERED_CELLS = 150


def plot_against_flops(
    summary: pd.DataFrame,
    title: str = "",
    plain_percent: float | None = None,
    width: float = 6.4,
    static: pd.DataFrame | None = None,
) -> Figure:
    """Top-1, or mIoU, against FLOPs (percent of the full network), a point for every S.

    Args:
      summary: the table of `evaluation.summarize`; `scale`, `top1_percent` or `miou_percent`,
        `flops_share`, `flops_std` and `flops_full` are read.
      title: written above the plot.
      plain_percent: what the plain network reached, drawn as a line.
      width: of the figure, in inches.
      static: plain networks drawn beside it, of `static.read`.

    Returns:
      The figure. Horizontal bars are one standard deviation over the samples.
    """
    figure = NotebookFigure(figsize=(width, 0.69 * width), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    share = 100 * summary["flops_share"].to_numpy(float)
    spread = 100 * (summary["flops_std"] / summary["flops_full"]).to_numpy(float)
    measure = measure_of(summary.columns)
    reached = summary[measure.column].to_numpy(float)
    axes.errorbar(share, reached, xerr=spread, fmt="none", ecolor=_BAR, elinewidth=2, capsize=3)
    axes.plot(share, reached, "o-", color=_LINE, linewidth=1.5, markersize=6, zorder=3)

    curves = [Curve(share, reached, [f"S = {scale:g}" for scale in summary["scale"]])]
    lines, heights = {}, [*reached]
    if plain_percent is not None:
        heights.append(plain_percent)
        lines["plain network, after phase pretrain"] = axes.axhline(
            plain_percent, color="0.5", linewidth=1, linestyle="--"
        )
    if static is not None:
        costs = 100 * (static["flops"] / summary["flops_full"].iloc[0]).to_numpy(float)
        of_static = static[measure.column].to_numpy(float)
        curves.append(Curve(costs, of_static, [*static["network"]]))
        (lines["plain networks of several sizes"],) = axes.plot(
            *curves[1][:2], "s:", color=_STATIC, linewidth=1.2, markersize=5
        )
        heights += [*curves[1].ys]
    _set_limits(axes, [*(share - spread), *(share + spread), *curves[-1].xs], heights)
    if lines:
        axes.legend(lines.values(), lines.keys(), frameon=False, fontsize=8)
    axes.set_xlabel("FLOPs, % of the full network\n(bars: one standard deviation over samples)")
    axes.set_ylabel(f"{measure.title}, %")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=10)
    figure.draw_without_rendering()  # the layout decides where points are, in pixels
    label_points(axes, *curves)
    return figure


def _set_limits(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Room for all points, and for their labels."""
    height, width = max(ys) - min(ys), max(xs) - min(xs)
    margin, pad = max(0.5, 0.15 * height), max(2.0, 0.06 * width)
    axes.set_ylim(min(ys) - margin, max(ys) + margin)
    axes.set_xlim(min(xs) - pad, max(xs) + pad)


def plot_block_usage(
    gates: Num[np.ndarray, "k n N"],
    scales: Sequence[float],
    groups: Sequence[tuple[str, int]],
    title: str = "",
    width: float | None = None,
) -> Figure:
    """A map of the share of samples that use each block (x, network order) at each S (y).

    Args:
      gates: 1 where a sample uses a block, by S, sample and block.
      scales: S of each of the k rows, ascending.
      groups: parts of the network in order, each by its name and number of blocks; these sum to N.
      title: written above the plot.
      width: of the figure, in inches; by default wide enough for N blocks.

    Returns:
      The figure; cells carry their percentage where N is small.
    """
    usage = 100 * np.asarray(gates).mean(axis=1, dtype=np.float64)
    rows, blocks = usage.shape
    numbered = blocks <= _MOST_NUMBERED_BLOCKS
    if width is None:
        width = float(np.clip((0.42 if numbered else 0.2) * blocks + 2.0, 6.4, 17.2))
    figure = NotebookFigure(
        figsize=(width, 1.6 + 0.36 * max(rows, 3)), dpi=150, layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(usage, cmap="viridis", vmin=0, vmax=100, aspect="auto", origin="lower")
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.06)
    bar.set_label("samples using\nthe block, %")

    axes.set_yticks(range(rows), [f"{scale:g}" for scale in scales])
    axes.set_ylabel("S")
    _number_blocks(axes, blocks)
    axes.tick_params(length=2)
    axes.spines[:].set_visible(False)
    _draw_groups(axes, groups)
    if numbered:
        _number_cells(axes, usage)
    if title:
        axes.set_title(title, fontsize=10, pad=22)
    return figure


def plot_map(
    table: pd.DataFrame,
    x: str,
    y: str,
    unit: str,
    width: float | None = None,
    row_height: float = 0.3,
) -> Figure:
    """Shares from 0 to 1 as a map in percent, the table's rows from below; its axes' names.

    The figure is `width` inches wide, by default enough for the table's columns.
    """
    rows, columns = table.shape
    if width is None:
        width = float(np.clip(0.42 * columns + 2.0, 5.0, 17.0))
    height = 1.4 + row_height * max(rows, 3)
    figure = NotebookFigure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    shares = 100 * table.to_numpy(float)
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=100, aspect="auto", origin="lower")
    figure.colorbar(image, ax=axes, pad=0.02, fraction=0.06).set_label(unit)
    for axis, names, most in ((axes.xaxis, table.columns, 30), (axes.yaxis, table.index, 30)):
        step = -(-len(names) // most)
        shown = [f"{name:g}" if isinstance(name, float) else str(name) for name in names]
        # A class may be called $1.
        axis.set_ticks(range(0, len(names), step), shown[::step], parse_math=False)
    axes.set(xlabel=x, ylabel=y)
    axes.tick_params(length=2)
    axes.spines[:].set_visible(False)
    if shares.size <= _MOST_NUMBERED_CELLS:
        _number_cells(axes, shares)
    return figure


def plot_bars(
    usage: Float[np.ndarray, " N"], groups: Sequence[tuple[str, int]], title: str = ""
) -> Figure:
    """The share of samples that use each of N blocks, as bars in percent."""
    blocks = len(usage)
    width = float(np.clip(0.34 * blocks + 2.0, 6.4, 17.2))
    figure = NotebookFigure(figsize=(width, 2.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    bars = axes.bar(range(blocks), 100 * usage, color=_LINE)
    if blocks <= _MOST_NUMBERED_BLOCKS:
        axes.bar_label(bars, fmt="%.0f", padding=1, fontsize=8)
    _number_blocks(axes, blocks)
    axes.set(ylabel="samples using\nthe block, %", xlim=(-0.6, blocks - 0.4), ylim=(0, 112))
    axes.set_yticks(range(0, 101, 25))
    axes.spines[["top", "right"]].set_visible(False)
    _draw_groups(axes, groups, color="0.8", linewidth=1)
    axes.set_title(title, fontsize=10, pad=22)
    return figure


def plot_bands(bands: pd.DataFrame, x: str, y: str) -> Figure:
    """Small plots side by side, each a line within a band.

    Args:
      bands: a row for every plot and place on the x axis, which its two index levels name; columns
        `low`, `middle` and `high`.
      x: the x axis' name.
      y: the y axis' name.
    """
    names = bands.index.unique(level=0)
    columns = int(np.ceil(np.sqrt(len(names))))
    rows = -(-len(names) // columns)
    figure = NotebookFigure(
        figsize=(max(4.0, 0.6 + 2.2 * columns), 0.6 + 1.5 * rows), dpi=150, layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for axes in grid[len(names) - columns : len(names)]:
        axes.tick_params(labelbottom=True)  # also where a place below is empty
    for axes, name in zip(grid, names, strict=False):
        band = bands.loc[name]
        axes.axhline(0, color="0.5", linewidth=0.8, linestyle="--")
        axes.fill_between(band.index, band["low"], band["high"], color=_BAR, linewidth=0)
        axes.plot(band.index, band["middle"], color=_LINE, linewidth=1.5)
        axes.set_title(f"{bands.index.names[0]} {name}", fontsize=8)
        axes.tick_params(labelsize=7, length=2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    return figure


def plot_images(
    images: UInt8[np.ndarray, "n h w c"], captions: Sequence[str], columns: int = 8
) -> Figure:
    """Images in rows of `columns`, each under its caption."""
    rows = max(1, -(-len(images) // columns))
    figure = NotebookFigure(figsize=(1.35 * columns, 1.75 * rows), dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, caption in zip(grid, images, captions, strict=False):
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(caption, fontsize=6.5)
    return figure


def _number_cells(axes: Axes, percent: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(percent):
        colour = "black" if value > 60 else "white"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)


def _number_blocks(axes: Axes, blocks: int) -> None:
    ticks = np.arange(0, blocks, max(1, -(-blocks // 30)))
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_xlabel("block, in network order")


def _draw_groups(
    axes: Axes, groups: Sequence[tuple[str, int]], color: str = "white", linewidth: float = 3
) -> None:
    start = 0
    for name, blocks in groups:
        if start:
            axes.axvline(start - 0.5, color=color, linewidth=linewidth)
        axes.text(
            start + (blocks - 1) / 2,
            1.02,
            name,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
        )
        start += blocks
