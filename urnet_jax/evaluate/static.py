"""The static line: plain networks of several sizes, beside which a resizable one is judged.

A network whose cost the user sets pays only if, at the cost of a plain network, it is at least as
accurate as that one. What plain networks reached is read from their evaluations.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from urnet_jax.errors import UserError

FILE = "eval.json"


def read(folders: Sequence[epath.PathLike], *, dataset: str, split: str) -> pd.DataFrame:
    """Plain networks by cost, from the `eval.json` of some folders, or of the folders in those.

    Columns: `network`, `flops` of an image, `top1_percent`, `runs`, over which of one name and cost
    these are means, and `steps`, after how many, as `6250` or `374 to 6250`.

    Args:
      folders: of evaluated runs, or that hold such folders.
      dataset: that they have to be of.
      split: that they have to be of.

    Raises:
      UserError: a folder holds no evaluation, or one of another kind, dataset or split.
    """
    found = [_point(path, dataset, split) for folder in folders for path in _files(folder)]
    table = pd.DataFrame(found, columns=["network", "flops", "top1_percent", "step"])
    grouped: Any = table.groupby(["flops", "network"])
    return grouped.agg(
        top1_percent=("top1_percent", "mean"), runs=("step", "size"), steps=("step", _lengths)
    ).reset_index()


def compare(summary: pd.DataFrame, static: pd.DataFrame) -> pd.DataFrame:
    """The resizable network at the cost of each plain one, on the lines between its own points.

    Columns, beside those of `static`: `flops_share` of the resizable network's own full cost,
    `resizable_percent`, its top-1 at that cost, and `over`, by how many points that is more; both
    are missing where all of the network's own points are dearer, and where they are cheaper unless
    S = 1, at which it is as dear as it gets, is one of them.

    Args:
      summary: of `evaluation.summarize`.
      static: of `read`.
    """
    own: Any = summary.sort_values("flops_mean")
    dearest = own["top1_percent"].iloc[-1] if (own["scale"] == 1).any() else np.nan
    there = np.interp(
        static["flops"], own["flops_mean"], own["top1_percent"], left=np.nan, right=dearest
    )
    full = float(summary["flops_full"].iloc[0])
    return static.assign(
        flops_share=static["flops"] / full,
        resizable_percent=there,
        over=there - static["top1_percent"],
    )


def sentences(compared: pd.DataFrame) -> list[str]:
    """`compare`'s rows for people, one sentence for each plain network."""
    rows: Any = compared.itertuples()
    return [_sentence(row) for row in rows]


def _sentence(row: Any) -> str:
    runs = f", the mean of {row.runs} runs" if row.runs > 1 else ""
    unlike = f" of {row.steps} steps" if " to " in row.steps else ""
    said = f"{row.network}: {row.top1_percent:.2f} %{runs}{unlike}, "
    said += f"at {100 * row.flops_share:.1f} %"
    if np.isnan(row.over):
        return f"{said} of the FLOPs; this network was not evaluated at that cost."
    return (
        f"{said} of the FLOPs; this network there: {row.resizable_percent:.2f} %, "
        f"{row.over:+.2f} points."
    )


def _lengths(steps: pd.Series) -> str:
    low, high = steps.min(), steps.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _files(folder: epath.PathLike) -> list[epath.Path]:
    """A folder's evaluation, or those of the folders in it, in order of their names."""
    own = epath.Path(folder) / FILE
    files = [own] if own.exists() else sorted(epath.Path(folder).glob(f"*/{FILE}"))
    if not files:
        raise UserError(
            f"--static names {folder}, in which there is no {FILE}: name the folders of plain "
            "networks that evaluate.py has evaluated, or one that holds them."
        )
    return files


def _point(path: epath.Path, dataset: str, split: str) -> tuple[str, float, float, int]:
    """What an evaluation says of a plain network: its name, FLOPs, top-1 and steps."""
    try:
        record: Mapping[str, Any] = json.loads(path.read_text())
        of = record["dataset"], record["split"]
        rows, about = record["rows"], record["architecture"]
        point = record.get("network", path.parent.name), rows[0]["flops_mean"]
        top1, step = float(rows[0]["top1_percent"]), int(record["step"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path} is not an evaluation by evaluate.py: leave it out.") from error
    # In phase pretrain gates are not used.
    if not about.startswith("plain") and record.get("phase") != "pretrain":
        raise UserError(
            f"--static names {path}, which is of a {about}: name evaluations of plain networks."
        )
    if of != (dataset, split):
        raise UserError(
            f"--static names {path}, which is of {' '.join(of)}, and this evaluation is of "
            f"{dataset} {split}: name one of the same images."
        )
    return str(point[0]), float(point[1]), top1, step
