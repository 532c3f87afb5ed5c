"""The table, the CSV file and the plot of `benchmarks/curve.py`."""

import pathlib
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.results import Row
from urnet_jax.evaluate import static
from urnet_jax.evaluate.figures import to_png

COLUMNS = [
    "network", "S", "flops_share", "top1", "asked", "distinct_paths", "seed", "fixed_top1",
]  # fmt: skip


def table(record: Row) -> pd.DataFrame:
    """A row for every network, S and seed, without those from before calibration.

    Columns: `network`, `S` (missing for static networks), `flops_share` (of the base without
    gates), `top1` in percent, `asked` (the share that S asks for), `distinct_paths` among the test
    images, `seed`, and `fixed_top1`, the network's top-1 at that cost without the image's part of
    its gates' logits (missing for static networks), see `evaluate.image_part`.
    """
    rows = [row for row in record["rows"] if row["calibration"] != "before"]
    names = [row["group"].rsplit(",", 1)[0] for row in rows]
    found = [
        {
            "network": name,
            "S": row["scale"] if row["calibration"] else np.nan,
            "flops_share": row["flops_mean"] / record["base_flops"],
            "top1": row["top1_percent"],
            "asked": row["scale"] if row["calibration"] else np.nan,
            "distinct_paths": row["distinct_paths"],
            "seed": row["seed"],
            "fixed_top1": row.get("fixed_percent", np.nan),
        }
        for name, row in zip(names, rows, strict=True)
    ]
    return pd.DataFrame(found, columns=COLUMNS)


def to_static(rows: Any) -> np.ndarray:
    """Points of top-1 over the line through the static networks, at each row's cost.

    The line's points are means over seeds; missing where the cost is outside of it.
    """
    means = _static(rows)
    if len(means) < 2:
        return np.full(len(rows), np.nan)
    costs, top1 = means["flops_share"].to_numpy(), means["top1"].to_numpy()
    line = np.interp(rows["flops_share"], costs, top1, left=np.nan, right=np.nan)
    return rows["top1"].to_numpy() - line


def _static(rows: Any) -> Any:
    """The static networks by cost, the means over seeds."""
    means = rows[rows["S"].isna()].groupby("network")[["flops_share", "top1"]].mean()
    return means.sort_values("flops_share")


def at_static_costs(rows: Any) -> list[str]:
    """For people: the resizable network at the cost of each static one, means over seeds."""
    own = rows[(rows["network"] == "resizable")].groupby("S")[["flops_share", "top1"]].mean()
    plain = rows[rows["S"].isna()].groupby("network")
    if own.empty or not len(plain):
        return []
    summary = pd.DataFrame(
        {"scale": own.index, "flops_mean": own["flops_share"], "top1_percent": own["top1"],
         "flops_full": 1.0}
    )  # fmt: skip
    beside = plain.agg(flops=("flops_share", "mean"), top1_percent=("top1", "mean"),
                       runs=("seed", "size")).reset_index().sort_values("flops")  # fmt: skip
    # All of one command are trained as long.
    return static.sentences(static.compare(summary, beside.assign(steps="")))


def plot(rows: Any, title: str) -> Figure:
    """Top-1 against the share of the base's FLOPs: static networks, and each resizable one."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    each, means = rows[rows["S"].isna()], _static(rows)
    if len(each):
        axes.plot(
            100 * means["flops_share"], means["top1"], color="0.35", marker="s", ls="--",
            label="static networks",
        )  # fmt: skip
        axes.scatter(100 * each["flops_share"], each["top1"], color="0.35", s=8)
        for name, point in means.iterrows():
            axes.annotate(
                str(name).removeprefix("static "), (100 * point["flops_share"], point["top1"]),
                textcoords="offset points", xytext=(0, 6), fontsize=7, color="0.35", ha="center",
            )  # fmt: skip
    for n, (name, of_one) in enumerate(rows[rows["S"].notna()].groupby("network", sort=False)):
        line = of_one.groupby("S")[["flops_share", "top1"]].mean()
        main = name == "resizable"
        axes.plot(
            100 * line["flops_share"], line["top1"], marker="o", ms=4 if main else 3,
            lw=1.8 if main else 0.9, label=name, zorder=3 if main else 2,
            ls="-" if n < 10 else ":",  # After ten lines colours are those of the first.
        )  # fmt: skip
        if of_one["seed"].nunique() > 1:
            axes.scatter(100 * of_one["flops_share"], of_one["top1"], s=6, zorder=3)
    axes.set_xlabel("FLOPs of an image, % of the base's")
    axes.set_ylabel("top-1, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.margins(0.08, 0.1)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def write(record: Row, path: pathlib.Path) -> list[pathlib.Path]:
    """Writes curve.csv and curve.png beside the record, and prints the table."""
    rows = table(record)
    csv, png = path.with_name("curve.csv"), path.with_name("curve.png")
    rows.to_csv(csv, index=False, float_format="%.6g")
    base = record["base"].replace("resnet", "ResNet-")
    png.write_bytes(to_png(plot(rows, f"{base} on {_data(record['dataset'])}")))
    _show(rows)
    return [path, csv, png]


def _data(dataset: str) -> str:
    return "CIFAR-10 (JPEG)" if dataset == "cifar10" else dataset


def _show(rows: pd.DataFrame) -> None:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in (
        "network",
        "S",
        "FLOPs, %",
        "top-1, %",
        "over static",
        "over fixed",
        "paths",
        "seed",
    ):
        shown.add_column(header, justify="left" if header == "network" else "right")
    over = to_static(rows)
    cells: Any = rows.itertuples()
    for row, points in zip(cells, over, strict=True):
        shown.add_row(
            row.network, "" if np.isnan(row.S) else f"{row.S:g}", f"{100 * row.flops_share:.1f}",
            f"{row.top1:.2f}", "" if np.isnan(row.S) or np.isnan(points) else f"{points:+.2f}",
            "" if np.isnan(row.fixed_top1) else f"{row.top1 - row.fixed_top1:+.2f}",
            str(row.distinct_paths), str(row.seed),
        )  # fmt: skip
    console = Console()
    console.print(shown)
    console.print(*at_static_costs(rows), sep="\n", soft_wrap=True, highlight=False)
