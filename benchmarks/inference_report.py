"""What `inference.py` shows: a table in the terminal and a plot."""

from collections.abc import Sequence
from typing import Any

import matplotlib
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich import box
from rich.console import Console
from rich.table import Table

from urnet_jax.evaluate.figures import to_png

MARKERS = {"agreeing": "o", "independent": "^", "trained": "s"}

PUBLISHED = {"dropping": "dropping blocks", "masking": "masking channels"}
"""What published code does in PyTorch, by its execution."""

Rows = Sequence[dict[str, Any]]


def print_table(rows: Rows) -> None:
    """Prints a row for every batch, execution, kind of gates and usage, a table per network."""
    console = Console()
    forward = [row for row in rows if row["kind"] == "forward"]
    for network, dtype in _panels(forward):
        own = [row for row in forward if (row["network"], row["dtype"]) == (network, dtype)]
        console.print(f"{network}, {dtype}", highlight=False)
        console.print(_forward_table(own))
    if forward:
        console.print(
            "over: by how many points the share of dense's time exceeds the share of FLOPs.\n"
            "PyTorch drops blocks as published code does, those that the whole batch skips, and\n"
            "computes and masks channels;\n"
            "compiled: by torch.compile, a share of PyTorch's eager dense time.\n",
            highlight=False,
        )
    compiled = [row for row in rows if row["kind"] == "compile"]
    if compiled:
        console.print(_compile_table(compiled))


def _panels(rows: Rows) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["network"], row["dtype"]) for row in rows))


def _forward_table(rows: Rows) -> Table:
    """The table of one network and dtype."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for header in ("batch", "run as", "gates"):
        table.add_column(header, no_wrap=True)
    for header in (
        "usage\nor S", "FLOPs,\n%", "time,\nms", "of\ndense,\n%", "over,\npoints",
        "PyTorch,\nms", "of its\ndense,\n%",
    ):  # fmt: skip
        table.add_column(header, justify="right", no_wrap=True)
    torch = {_key(row): row for row in rows if row["framework"] == "torch"}
    previous = None
    for row in rows:
        batch = row["batch_size"]
        if row["framework"] == "torch":
            if row["execution"] == "compiled":
                blank = [""] * 5
                table.add_row(str(batch), "compiled", "all on", *blank, *_timed(row))
            continue
        if previous not in (None, batch):
            table.add_section()
        previous = batch
        share, macs = 100 * row["time_share"], 100 * row["flops_share"]
        reference = row["gates"] == "all on"
        table.add_row(
            str(batch), row["execution"], row["gates"], f"{row['usage']:g}", f"{macs:.1f}",
            *_timed(row), "" if reference else f"{share - macs:+.1f}",
            *_timed(torch.get(_key(row))),
        )  # fmt: skip
    return table


def _key(row: dict[str, Any]) -> tuple:
    compiled = row["execution"] == "compiled"
    return row["batch_size"], row["gates"], row["usage"], compiled


def _timed(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    milliseconds = row["median_ms"]
    digits = 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{digits}f}", f"{100 * row['time_share']:.1f}"


def _compile_table(rows: Rows) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("compiling", "batch", "dtype", "execution", "s", "to ResNet-20"):
        table.add_column(header, justify="right" if header in ("batch", "s") else "left")
    for row in rows:
        table.add_row(
            row["network"], str(row["batch_size"]), row["dtype"], row["execution"],
            f"{row['compile_s']:.2f}", f"{row['to_resnet20']:.2f}",
        )  # fmt: skip
    return table


def write_plot(record: dict[str, Any], path: epath.Path) -> list[epath.Path]:
    """Draws time against FLOPs, a panel per network and dtype; returns the files written.

    What other processes disturbed is left out.
    """
    busy = {g["group"] for g in record["groups"] if "busy" in g["notes"]}
    rows = [r for r in record["rows"] if r["kind"] == "forward" and r["group"] not in busy]
    if not rows:
        return []
    figure = plot(rows, _device_name(record["device"]))
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_bytes(to_png(figure))
    temporary.replace(path)
    return [path]


def plot(rows: Rows, title: str) -> Figure:
    """Time as a share of dense's against the share of FLOPs, both in percent.

    Args:
      rows: of kind `forward`. Of several executions the first of a group is drawn.
      title: written above the plot.
    """
    panels = _panels(rows)
    batches = sorted({row["batch_size"] for row in rows})
    colours = matplotlib.colormaps["viridis_r"].resampled(len(batches) + 1)
    colour = {batch: colours(i + 1) for i, batch in enumerate(batches)}
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(0.6 + 4.2 * columns, 2.1 + 3.7 * lines), dpi=150, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        own = [row for row in rows if (row["network"], row["dtype"]) == panel]
        _draw_panel(axes, own, colour)
        axes.set_title(f"{panel[0]}, {panel[1]}", fontsize=11)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("time, % of the dense network's", fontsize=11)
    for axes in grid[-1]:
        axes.set_xlabel("FLOPs, % of the full network", fontsize=11)
    figure.suptitle(title, fontsize=11)
    kinds = [name for name in MARKERS if any(row["gates"] == name for row in rows)]
    handles = [Line2D([], [], color=colour[b], lw=2, label=f"batch {b}") for b in batches]
    handles += [
        Line2D([], [], color="0.25", marker=MARKERS[k], lw=0, label=f"{k} gates") for k in kinds
    ]
    for label in dict.fromkeys(PUBLISHED.get(row["execution"]) for row in rows):
        if label:
            handles.append(Line2D([], [], color="0.7", lw=1.2, label=f"PyTorch {label}"))
    handles.append(Line2D([], [], color="0.4", lw=1, ls="--", label="time follows FLOPs"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(4, 1 + columns),
        frameon=False,
        fontsize=9,
    )
    return figure


def _draw_panel(axes: Axes, rows: Rows, colour: dict[int, Any]) -> None:
    axes.plot([0, 100], [0, 100], color="0.4", linewidth=1, linestyle="--", zorder=1)
    first = {}
    for row in rows:
        if row["gates"] != "all on" and row["framework"] == "jax":
            first.setdefault(row["batch_size"], row["execution"])
    curves: dict[tuple, list[tuple[float, float]]] = {}
    for row in rows:
        ours = row["execution"] == first.get(row["batch_size"])
        drawn = ours if row["framework"] == "jax" else row["execution"] in PUBLISHED
        if row["gates"] != "all on" and drawn:
            key = (row["framework"], row["batch_size"], row["gates"])
            point = 100 * row["flops_share"], 100 * row["time_share"]
            curves.setdefault(key, []).append(point)
    for (framework, batch, gates), points in curves.items():
        xs, ys = zip(*sorted(points), strict=True)
        ours = framework == "jax"
        axes.plot(
            xs, ys, marker=MARKERS[gates], color=colour[batch] if ours else "0.75",
            linewidth=1.5 if ours else 1.0, markersize=5.5 if ours else 3.5,
            zorder=3 if ours else 2,
        )  # fmt: skip
    axes.set_xlim(0, 105)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=10)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _device_name(device: dict[str, Any]) -> str:
    if device["platform"] == "cpu":
        return f"{device['processor']}, {device['threads']} threads"
    return device["kind"]
