"""The table, the CSV file and the plot of `benchmarks/shaping.py`."""

import pathlib
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.results import Row
from urnet_jax.evaluate.figures import to_png

COLUMNS = [
    "network", "S", "flops", "flops_share", "top1", "gates", "always", "never", "conditional",
    "distinct_paths", "seed",
]  # fmt: skip


def table(record: Row) -> pd.DataFrame:
    """A row for every network, S and seed, without those from before calibration.

    Columns: `network`, `S` (missing for networks of one cost), `flops` of an image, `flops_share`
    of the network's own, `top1` in percent, `gates`, how many of them are `always` open (for more
    than 99 % of the images), `never` (less than 1 %) and `conditional`, `distinct_paths`, `seed`.
    """
    rows = [row for row in record["rows"] if row["calibration"] != "before"]
    found = [
        {
            "network": row["group"].rsplit(",", 1)[0],
            "S": row["scale"] if row["calibration"] else np.nan,
            "flops": row["flops_mean"],
            "top1": row["top1_percent"],
            **{name: row[name] for name in COLUMNS if name in row},
        }
        for row in rows
    ]
    return pd.DataFrame(found, columns=COLUMNS)


def share_error(record: Row) -> pd.DataFrame:
    """Of networks that follow S the mean distance of the share of FLOPs from S, in points.

    Columns: `group`, `calibration` (before or after), `points`.
    """
    rows = [
        {"group": row["group"], "calibration": row["calibration"],
         "points": 100 * abs(row["flops_share"] - row["scale"])}
        for row in record["rows"] if row["calibration"]
    ]  # fmt: skip
    found: Any = pd.DataFrame(rows, columns=["group", "calibration", "points"])
    return found.groupby(["group", "calibration"], sort=False)["points"].mean().reset_index()


def plot(rows: Any, title: str, beside: pd.DataFrame | None) -> Figure:
    """Top-1 against FLOPs: static networks, those of one cost, and those that follow S."""
    figure = Figure(figsize=(6.8, 4.4), layout="constrained")
    axes = figure.add_subplot()
    if beside is not None and len(beside):
        axes.plot(
            beside["flops"] / 1e6, beside["top1_percent"], color="0.35", marker="s", ls="--",
            label="static networks",
        )  # fmt: skip
    shaped, unshaped, line = _kinds(rows)
    for own, colour, label in (
        (shaped, "#e0a030", "gates of the image, shaped"),
        (unshaped, "#8a5a00", "gates of the image, unshaped"),
    ):
        if len(own):
            axes.scatter(own["flops"] / 1e6, own["top1"], color=colour, label=label, zorder=3)
    for name, of_one in line.groupby("network", sort=False):
        means = of_one.groupby("S")[["flops", "top1"]].mean()
        axes.plot(means["flops"] / 1e6, means["top1"], marker="o", ms=3, label=str(name))
    axes.set_xlabel("FLOPs of an image, millions")
    axes.set_ylabel("top-1, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.margins(0.06, 0.1)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def _kinds(rows: Any) -> tuple[Any, Any, Any]:
    """Rows of networks of one cost, shaped and unshaped, and of those that follow S."""
    one_cost, unshaped = rows["S"].isna(), rows["network"].str.endswith("unshaped")
    return rows[one_cost & ~unshaped], rows[one_cost & unshaped], rows[~one_cost]


def write(
    record: Row, path: pathlib.Path, beside: pd.DataFrame | None = None
) -> list[pathlib.Path]:
    """Writes gates.csv and gates.png beside the record, and prints the table.

    Args:
      record: what was measured.
      path: its file.
      beside: plain networks to be drawn, of `static.read`.
    """
    rows = table(record)
    csv, png = path.with_name("gates.csv"), path.with_name("gates.png")
    rows.to_csv(csv, index=False, float_format="%.6g")
    base = record["base"].replace("resnet", "ResNet-")
    data = "CIFAR-10 (JPEG)" if record["dataset"] == "cifar10" else record["dataset"]
    png.write_bytes(to_png(plot(rows, f"{base} on {data}: channel and block gates", beside)))
    _show(rows, share_error(record), beside)
    return [path, csv, png]


def to_static(rows: Any, beside: pd.DataFrame | None) -> np.ndarray:
    """Points of top-1 over the line through the static networks, where it has each row's cost."""
    if beside is None or len(beside) < 2:
        return np.full(len(rows), np.nan)
    line: Any = beside.groupby("flops")["top1_percent"].mean()
    there = np.interp(rows["flops"], line.index, line.to_numpy(), left=np.nan, right=np.nan)
    return rows["top1"].to_numpy() - there


def _show(rows: pd.DataFrame, errors: pd.DataFrame, beside: pd.DataFrame | None) -> None:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headers = ("network", "S", "FLOPs, M", "top-1, %", "over static", "always", "never",
               "at times", "seed")  # fmt: skip
    for header in headers:
        shown.add_column(header, justify="left" if header == "network" else "right")
    cells: Any = rows.itertuples()
    for row, over in zip(cells, to_static(rows, beside), strict=True):
        shown.add_row(
            row.network, "" if np.isnan(row.S) else f"{row.S:g}", f"{row.flops / 1e6:.1f}",
            f"{row.top1:.2f}", "" if np.isnan(over) else f"{over:+.2f}",
            str(row.always), str(row.never), str(row.conditional), str(row.seed),
        )  # fmt: skip
    console = Console()
    console.print(shown)
    said: Any = errors.itertuples()
    for row in said:
        console.print(
            f"{row.group}, {row.calibration} calibration: the share of FLOPs is {row.points:.2f} "
            "points from S in the mean.", soft_wrap=True, highlight=False,
        )  # fmt: skip
