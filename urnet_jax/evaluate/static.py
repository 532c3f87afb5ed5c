"""The static line: plain networks of several sizes, beside which a resizable one is judged.

A network whose cost the user sets pays only if, at the cost of a plain network, it is at least as
accurate as that one. What plain networks reached is read from their evaluations.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from etils import epath

from urnet_jax.errors import UserError
from urnet_jax.nets.tasks import Measure, measure_of

FILE = "eval.json"


def read(folders: Sequence[epath.PathLike], *, dataset: str, split: str) -> pd.DataFrame:
    """Plain networks by cost, from the `eval.json` of some folders, or of the folders in those.

    Columns: `network`, `flops` of an image, `top1_percent` (or `miou_percent`), `runs`, over which
    of one name and cost these are means, and `steps`, after how many, as `6250` or `374 to 6250`.

    Args:
      folders: of evaluated runs, or that hold such folders.
      dataset: that they have to be of.
      split: that they have to be of.

    Raises:
      UserError: a folder holds no evaluation, or one of another kind, dataset or split.
    """
    found = [_point(path, dataset, split) for folder in folders for path in _files(folder)]
    measure = found[0].measure.column  # One, for they are all of one dataset.
    rows = [point[:3] + point[4:] for point in found]
    table = pd.DataFrame(rows, columns=["network", "flops", measure, "step"])
    grouped: Any = table.groupby(["flops", "network"])
    of_runs = {measure: (measure, "mean"), "runs": ("step", "size"), "steps": ("step", _lengths)}
    return grouped.agg(**of_runs).reset_index()


def compare(summary: pd.DataFrame, static: pd.DataFrame) -> pd.DataFrame:
    """The resizable network at the cost of each plain one, on the lines between its own points.

    Columns, beside those of `static`: `flops_share` of the resizable network's own full cost,
    `resizable_percent`, what it reaches at that cost, and `over`, by how many points that is more;
    both are missing where all of the network's own points are dearer, and where they are cheaper
    unless S = 1, at which it is as dear as it gets, is one of them.

    Args:
      summary: of `evaluation.summarize`.
      static: of `read`.
    """
    own: Any = summary.sort_values("flops_mean")
    measure = measure_of(summary.columns).column
    dearest = own[measure].iloc[-1] if (own["scale"] == 1).any() else np.nan
    there = np.interp(static["flops"], own["flops_mean"], own[measure], left=np.nan, right=dearest)
    full = float(summary["flops_full"].iloc[0])
    return static.assign(
        flops_share=static["flops"] / full,
        resizable_percent=there,
        over=there - static[measure],
    )


def sentences(compared: pd.DataFrame) -> list[str]:
    """`compare`'s rows for people, one sentence for each plain network."""
    rows: Any = compared.itertuples()
    return [_sentence(row) for row in rows]


def _sentence(row: Any) -> str:
    runs = f", the mean of {row.runs} runs" if row.runs > 1 else ""
    unlike = f" of {row.steps} steps" if " to " in row.steps else ""
    said = f"{row.network}: {getattr(row, measure_of(row._fields).column):.2f} %{runs}{unlike}, "
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


class _Point(NamedTuple):
    """What an evaluation says of a plain network."""

    network: str
    flops: float
    reached: float
    measure: Measure
    step: int


def _point(path: epath.Path, dataset: str, split: str) -> _Point:
    """Of the evaluation in a file."""
    try:
        record: Mapping[str, Any] = json.loads(path.read_text())
        of = record["dataset"], record["split"]
        rows, about = record["rows"], record["architecture"]
        measure = measure_of(rows[0])
        name, flops = record.get("network", path.parent.name), float(rows[0]["flops_mean"])
        reached, step = float(rows[0][measure.column]), int(record["step"])
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
    return _Point(str(name), flops, reached, measure, step)
