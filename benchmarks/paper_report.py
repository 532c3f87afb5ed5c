"""The table and the figures of `benchmarks/paper.py`."""

import pathlib
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.paper_rows import BASE, PLAIN, SETS, chosen
from benchmarks.results import Row
from urnet_jax.evaluate.figures import to_png

PAPER_TO_PLAIN = {"cifar10": {"urnet": {0.2: -1.0, 0.6: 0.5, 0.8: 0.5, 1.0: 0.4}}}
"""Points of top-1 over the plain network, by dataset, row and S, of the paper's ResNet-110. Its
other figures were not at hand."""

PAPER_USAGE_ERROR = {"cifar10": {"urnet": 4.2}, "cifar100": {"urnet": 11.3}}
"""The paper's mean distance of usage from S there, in points; on ImageNet 13.6."""

COLUMNS = [
    "network", "scale", "top1_percent", "to_plain", "paper_to_plain", "blocks_mean", "blocks_std",
    "usage_percent", "flops_mean", "flops_percent", "usage_error", "paper_usage_error",
]  # fmt: skip


def table(record: Row) -> pd.DataFrame:
    """A row for every network and S, the plain one first.

    Columns: `network`, `scale`, `top1_percent`, `to_plain` (points over the plain network that was
    trained as long: row random_drop_test at S = 1), `paper_to_plain`, `blocks_mean`, `blocks_std`,
    `usage_percent`, `flops_mean` (of a sample), `flops_percent` (of the plain network's; above 100
    where gates cost more than they save), `usage_error` (points between the shares that were asked
    for and used, the mean over the network's S) and `paper_usage_error`.
    """
    order = [BASE, *chosen(",".join(SETS))]
    # A row that is no longer known comes last.
    rank = {name: place for place, name in enumerate(order)}
    rows: list[Row] = sorted(record["rows"], key=lambda row: rank.get(row["group"], len(order)))
    plain = [row["top1_percent"] for row in rows if row["group"] == PLAIN and row["scale"] == 1]
    full = [row["flops_mean"] for row in rows if row["group"] == BASE]
    dataset = record["dataset"]
    paper, paper_error = PAPER_TO_PLAIN.get(dataset, {}), PAPER_USAGE_ERROR.get(dataset, {})
    errors: dict[str, list[float]] = {}
    for row in rows:
        error = 100 * abs(row["usage_mean"] - row["scale"])
        errors.setdefault(row["group"], []).append(error)
    found = [
        {
            **row,
            "network": row["group"],
            "to_plain": row["top1_percent"] - plain[0] if plain else np.nan,
            "paper_to_plain": paper.get(row["group"], {}).get(row["scale"], np.nan),
            "usage_percent": 100 * row["usage_mean"],
            "flops_percent": 100 * row["flops_mean"] / full[0] if full else np.nan,
            "usage_error": np.mean(errors[row["group"]]),
            "paper_usage_error": paper_error.get(row["group"], np.nan),
        }
        for row in rows
    ]
    return pd.DataFrame(found, columns=COLUMNS)


def to_markdown(found: pd.DataFrame) -> str:
    """The table with a line for every network and, in every cell, an S: top-1, blocks, FLOPs."""
    scales = sorted(found["scale"].unique())
    lines = [
        "Top-1, % (blocks used, %; FLOPs, % of the plain network's, gates included). To plain: "
        f"points over the plain network that was trained as long, {PLAIN} at S = 1.",
        "",
        "| network | " + " | ".join(f"S = {s:g}" for s in scales) + " | usage error, points |",
        "|" + "---|" * (len(scales) + 2),
    ]
    for name in found["network"].unique():
        rows = _of(found, name)
        cells = {
            row.scale: f"{row.top1_percent:.2f} ({row.usage_percent:.0f}; {row.flops_percent:.0f})"
            for row in rows.itertuples()
        }
        error = "" if name == BASE else f"{rows.usage_error.iloc[0]:.1f}"
        lines.append(_line(name, cells, scales, error))
        paper = {
            row.scale: f"{row.paper_to_plain:+.1f}"
            for row in rows.itertuples()
            if not np.isnan(row.paper_to_plain)
        }
        paper_error = rows.paper_usage_error.iloc[0]
        if paper:
            ours = {row.scale: f"{row.to_plain:+.2f}" for row in rows.itertuples()}
            ours = {scale: text for scale, text in ours.items() if "nan" not in text}
            lines.append(_line("... to plain, here", ours, scales, ""))
        if paper or not np.isnan(paper_error):
            error = f"{paper_error:g}"
            lines.append(_line("... to plain, the paper's ResNet-110", paper, scales, error))
    return "\n".join(lines) + "\n"


def _of(found: pd.DataFrame, name: str) -> Any:
    """One network's rows, by S."""
    return found.loc[found["network"] == name].sort_values(by="scale")


def _line(name: str, cells: dict[float, str], scales: list[float], last: str) -> str:
    return f"| {name} | " + " | ".join(cells.get(s, "") for s in scales) + f" | {last} |"


def write(record: Row, path: pathlib.Path, workdir: str) -> list[pathlib.Path]:
    """Writes table.csv, table.md and the figures whose networks are there; their paths.

    Args:
      record: of `results.measure`, with the `dataset`.
      path: of the record's file; the others come into a folder of its name.
      workdir: of the runs, for what single samples did.
    """
    found, folder = table(record), path.with_suffix("")
    folder.mkdir(exist_ok=True)
    device = ", ".join(str(record["device"][key]) for key in ("processor", "kind", "threads"))
    about = f"{record['base']} on {record['dataset']}, one run a row; {device} threads.\n\n"
    text = about + to_markdown(found)
    (folder / "table.csv").write_text(found.to_csv(index=False, float_format="%.6g"))
    (folder / "table.md").write_text(text)
    print(text)
    written = [folder / "table.csv", folder / "table.md"]
    figures = {
        "table1.png": plot_networks(found, list(SETS["table1"])),
        "figure5.png": plot_betas(found),
        "figure8.png": plot_fixed(found),
        "choices.png": plot_changes(found, "urnet", "choices"),
        "ablation.png": plot_changes(found, "ours", "ablation"),
    }
    for name, figure in figures.items():
        if figure is not None:
            (folder / name).write_bytes(to_png(figure))
            written.append(folder / name)
    for network in ("urnet", "ours"):
        usage = pathlib.Path(workdir) / network / "block_usage.png"
        if network in set(found["network"]) and usage.exists():
            (folder / f"figure4_{network}.png").write_bytes(usage.read_bytes())
            written.append(folder / f"figure4_{network}.png")
    return written


def plot_networks(found: pd.DataFrame, names: list[str]) -> Figure | None:
    """Top-1 against blocks used, and blocks used against S, a line for every network."""
    return _plot(found, {name: name for name in names if name in set(found["network"])})


def plot_changes(found: pd.DataFrame, row: str, changes: str) -> Figure | None:
    """A row of table 1 and the set of rows that each change one thing of it."""
    there = set(SETS[changes]) & set(found["network"])
    return plot_networks(found, [row, *SETS[changes]]) if there else None


def plot_betas(found: pd.DataFrame) -> Figure | None:
    """The paper's figure 5: what beta, the weight of the scale loss, does."""
    labels = {"beta_1": "beta = 1", "urnet": "beta = 2", "beta_4": "beta = 4", "beta_8": "beta = 8"}
    return _plot(found, labels) if set(labels) <= set(found["network"]) else None


def plot_fixed(found: pd.DataFrame) -> Figure | None:
    """The paper's figure 8: one network for all S, and networks for one S each.

    Bars are one standard deviation of the blocks that samples use.
    """
    fixed = set(SETS["figure8"]) & set(found["network"])
    if not fixed or "urnet" not in set(found["network"]):
        return None
    joined = found.replace({"network": dict.fromkeys(fixed, "fixed")})
    return _plot(joined, {"urnet": "URNet(Ranged)", "fixed": "URNet(Fixed)"}, bars=True)


def _plot(found: pd.DataFrame, labels: dict[str, str], bars: bool = False) -> Figure | None:
    if not labels:
        return None
    figure, (left, right) = _two()
    for place, (name, label) in enumerate(labels.items()):
        rows = _of(found, name)
        spread = 100 * rows.blocks_std * rows.usage_percent / (100 * rows.blocks_mean)
        style: Any = {"marker": "o", "markersize": 4, "linewidth": 1.3, "label": label}
        style |= {"capsize": 3, "color": "black" if name == "ours" else None}
        style["linestyle"] = "-" if place < 10 else "--"  # There are ten colours.
        spread = spread if bars else None
        left.errorbar(rows.usage_percent, rows.top1_percent, xerr=spread, **style)
        right.errorbar(100 * rows.scale, rows.usage_percent, yerr=spread, **style)
    _finish(left, right, found)
    return figure


def _two() -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(11, 4.2), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    return figure, (left, right)


def _finish(left: Axes, right: Axes, found: pd.DataFrame) -> None:
    plain = _of(found, PLAIN)
    if len(plain):  # Its last row is that of S = 1.
        left.axhline(
            plain.top1_percent.iloc[-1], color="0.5", linewidth=1, linestyle="--", label="plain"
        )
    left.set_xlabel("blocks used, %")
    left.set_ylabel("top-1, %")
    right.plot([0, 100], [0, 100], color="0.7", linewidth=1, linestyle=":", label="as asked")
    right.set_xlabel("S, %")
    right.set_ylabel("blocks used, %")
    for axes in (left, right):
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    lines = {label: line for axes in (left, right) for line, label in _legend(axes)}
    figure: Any = left.figure
    figure.legend(
        lines.values(), lines.keys(), loc="outside right center", frameon=False, fontsize=8
    )


def _legend(axes: Axes) -> list[tuple[Any, str]]:
    return list(zip(*axes.get_legend_handles_labels(), strict=True))
