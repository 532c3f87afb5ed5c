"""The table of an evaluation in the terminal."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from urnet_jax.nets.tasks import measure_of

STRAYS = 0.10
"""Distance of usage from S, as a share, that people are told of."""


def strays(summary: pd.DataFrame, of: str, *, calibrated: bool = False, least: float = 0.0) -> str:
    """What to say of the S at which usage is far from S; empty if there is none.

    Args:
      summary: of `evaluation.summarize`, of a network that heeds S.
      of: what S is a share of, `blocks` or `flops`.
      calibrated: whether it is, so that there is nothing better to advise.
      least: the share of FLOPs that always runs.
    """
    used = summary["flops_share" if of == "flops" else "usage_mean"]
    far = (used - summary["scale"]).abs() > STRAYS
    if not bool(far.to_numpy().any()):
        return ""
    pairs = zip(summary["scale"][far], used[far], strict=True)
    named = ", ".join(f"{100 * share:.0f} % at S = {scale:g}" for scale, share in pairs)
    what = "FLOPs" if of == "flops" else "blocks"
    advice = (
        "The network comes no nearer: it was not trained so far, or always uses more."
        if calibrated
        else "`urnet calibrate` makes S the share of FLOPs; longer training may bring usage nearer."
    )
    floored = (summary["scale"] < least) & (used <= least + STRAYS)
    if of == "flops" and bool(np.all(floored[far])):
        advice = f"{100 * least:.0f} % always runs: no smaller S can be met."
    return (
        f"Mind: the share of {what} that is used is more than {100 * STRAYS:.0f} points from S: "
        f"{named}. {advice}"
    )


def print_table(summary: pd.DataFrame, title: str = "", noun: str = "blocks") -> None:
    """Prints `summarize`'s table for people, within 80 columns; `noun` is what gates switch."""
    unit, name = (1e9, "G") if summary["flops_full"].iloc[0] >= 1e9 else (1e6, "M")
    blocks = f"{noun} used of {summary['blocks_total'].iloc[0]}\nmean ± std (min-max)"
    flops = f"FLOPs, {name}\nmean ± std"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    measure = measure_of(summary.columns)
    for header in ("S", f"{measure.title}, %", blocks, flops, "of the full\nnetwork, %"):
        table.add_column(header, justify="right")
    rows: Iterable[Any] = summary.itertuples()
    for row in rows:
        table.add_row(
            f"{row.scale:g}",
            f"{getattr(row, measure.column):.2f}",
            f"{row.blocks_mean:.2f} ± {row.blocks_std:.2f} ({row.blocks_min}-{row.blocks_max})",
            f"{row.flops_mean / unit:.2f} ± {row.flops_std / unit:.2f}",
            f"{100 * row.flops_share:.1f}",
        )
    console = Console()
    console.print(title, soft_wrap=True, highlight=False)
    console.print(table)
