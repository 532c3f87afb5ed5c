"""The table and the plots of `benchmarks/serving.py`."""

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

BIN_S = 0.5
"""Of the lines over time."""

COLUMNS = [
    "pattern", "load", "policy", "requests", "attainment", "simulated_attainment", "goodput_per_s",
    "top1_percent", "mean_scale", "p50_ms", "p99_ms", "p999_ms", "shed", "failed", "sent_late",
    "sender_cpu_share", "seed",
]  # fmt: skip


def timeline(
    found: dict[str, np.ndarray], times: np.ndarray, seconds: float, deadline_ms: float
) -> dict[str, list[float | None]]:
    """Load, S and attainment by time, for requests that were due in each bin."""
    edges = np.arange(0, seconds + BIN_S, BIN_S)
    place = np.digitize(times, edges) - 1
    in_time = (found["status"] == 200) & (1e3 * found["latency"] <= deadline_ms)
    lines: dict[str, list[float | None]] = {"requests_per_s": [], "scale": [], "attainment": []}
    for k in range(len(edges) - 1):
        own = place == k
        lines["requests_per_s"].append(float(own.sum() / BIN_S))
        lines["attainment"].append(float(in_time[own].mean()) if own.any() else None)
        good = own & in_time
        lines["scale"].append(float(found["scale"][good].mean()) if good.any() else None)
    return lines


def table(record: Row) -> pd.DataFrame:
    """A row for each run, see `COLUMNS`; shares are from 0 to 1.

    `right_percent` is of all requests, `bound_percent` what no scheduler can exceed in it.
    """
    bounds = {(b["pattern"], b["load"], b["seed"]): b["right_percent"] for b in record["bounds"]}
    return pd.DataFrame([
        {name: row[name] for name in COLUMNS} | {
            "http": row.get("http", True),
            "right_percent": row["attainment"] * (row["top1_percent"] or 0.0),
            "bound_percent": bounds[row["pattern"], row["load"], row["seed"]],
        }
        for row in record["rows"]
    ])  # fmt: skip


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and how far attainment spreads among them."""
    grouped: Any = rows.groupby(["pattern", "load", "http", "policy"], sort=False)
    found = grouped.mean(numeric_only=True).drop(columns="seed")
    found["seeds"] = grouped.size()
    found["spread"] = grouped["attainment"].max() - grouped["attainment"].min()
    return found.reset_index()


def plot(record: Row) -> Figure:
    """Load, S and attainment over time, a line a policy; of one seed, with HTTP or without."""
    first = _kind(record["rows"][0])
    rows = [row for row in record["rows"] if _kind(row) == first]
    patterns = list(dict.fromkeys((row["pattern"], row["load"]) for row in rows))
    figure = Figure(figsize=(3.6 * len(patterns) + 1, 5.4), layout="constrained")
    panels = figure.subplots(3, len(patterns), squeeze=False, sharex="col", sharey="row")
    for column, (pattern, load) in enumerate(patterns):
        own = [row for row in rows if (row["pattern"], row["load"]) == (pattern, load)]
        at = BIN_S * (np.arange(len(own[0]["timeline"]["scale"])) + 0.5)
        panels[0, column].plot(at, own[0]["timeline"]["requests_per_s"], color="0.4", lw=1)
        panels[0, column].axhline(record["capacity_per_s"], color="#b3261e", lw=0.8, ls=":")
        panels[0, column].set_title(f"{pattern}, {load:g} x what S = 1 carries", fontsize=9)
        for name, line in ((1, "scale"), (2, "attainment")):
            for row in own:
                ours = row["policy"] == "bending"
                values = np.array(row["timeline"][line], float)
                panels[name, column].plot(
                    at, values, lw=1.8 if ours else 0.9, label=row["policy"],
                    zorder=3 if ours else 2,
                )  # fmt: skip
            panels[name, column].set_ylim(-0.03, 1.05)
        panels[2, column].set_xlabel("seconds", fontsize=9)
    for row, text in enumerate(("requests/s", "S of answers in time", "answered in time")):
        panels[row, 0].set_ylabel(text, fontsize=9)
    handles, labels = panels[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    return figure


def _kind(row: Row) -> tuple[int, bool]:
    return row["seed"], row.get("http", True)


def write(record: Row, path: pathlib.Path) -> list[pathlib.Path]:
    """Writes serving.csv and serving.png beside the record, and prints the table."""
    csv, png = path.with_name("serving.csv"), path.with_name("serving.png")
    rows = table(record)
    rows.to_csv(csv, index=False, float_format="%.6g")
    png.write_bytes(to_png(plot(record)))
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headers = ("pattern", "policy", "in time", "expected", "top-1, %", "right, %", "at most", "S",
               "p50", "p99", "seeds")  # fmt: skip
    for header in headers:
        shown.add_column(header, justify="left" if header in headers[:2] else "right")
    cells: Any = means(rows).itertuples()
    for row in cells:
        policy = row.policy if row.http else f"{row.policy}, no HTTP"
        shown.add_row(
            f"{row.pattern} x {row.load:g}", policy, f"{row.attainment:.4f}",
            f"{row.simulated_attainment:.4f}", f"{row.top1_percent:.2f}",
            f"{row.right_percent:.2f}", f"{row.bound_percent:.2f}", f"{row.mean_scale:.2f}",
            f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}", str(row.seeds),
        )  # fmt: skip
    Console(width=110).print(shown)
    return [path, csv, png]
