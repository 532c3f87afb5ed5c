"""Which sample used which block at which S, as pandas tables; `inspection` gives them all."""

from typing import Literal

import numpy as np
import pandas as pd

from urnet_jax.errors import UserError
from urnet_jax.evaluate.evaluation import Evaluation


def gate_table(evaluation: Evaluation) -> pd.DataFrame:
    """A row for every S, sample and block.

    Columns: `sample` (its number in the whole split), `label`, `prediction`, `scale` (S), `block`
    (from 1, in network order), `gate` (1 where the sample used the block), `gate_logit` (0 and
    above opens it, unless another gate leaves it nothing) and `flops` (of the whole sample at that
    S).
    """
    k, n, blocks = evaluation.gates.shape
    logits = evaluation.gate_logits

    def by_sample(values: np.ndarray) -> np.ndarray:
        return np.repeat(np.broadcast_to(values, (k, n)).ravel(), blocks)

    return pd.DataFrame(
        {
            "sample": by_sample(evaluation.index),
            "label": by_sample(evaluation.labels),
            "prediction": by_sample(evaluation.predictions),
            "scale": np.repeat(np.asarray(evaluation.scales), n * blocks),
            "block": np.tile(np.arange(1, blocks + 1), k * n),
            "gate": evaluation.gates.ravel(),
            "gate_logit": np.nan if logits is None else logits.ravel(),
            "flops": by_sample(evaluation.flops),
        }
    )


def sample_table(evaluation: Evaluation) -> pd.DataFrame:
    """What `samples` makes of `gate_table`, without a row for every gate, which may be many."""
    k, n, _ = evaluation.gates.shape
    order = np.argsort(evaluation.index, kind="stable")
    columns = {
        "label": np.broadcast_to(evaluation.labels, (k, n)),
        "prediction": evaluation.predictions,
        "flops": evaluation.flops,
        "blocks": evaluation.gates.sum(axis=2, dtype=np.int64),
    }
    table = pd.DataFrame(
        {
            "sample": np.repeat(evaluation.index[order], k),
            "scale": np.tile(np.asarray(evaluation.scales), n),
            **{name: array[:, order].T.ravel() for name, array in columns.items()},
        }
    )
    table["correct"] = (table["label"] == table["prediction"]) & (table["label"] != -1)
    return table


def samples(gates: pd.DataFrame) -> pd.DataFrame:
    """A row for every sample and S: `label`, `prediction`, `correct`, `blocks` used, `flops`.

    Where labels are maps, `label` and `prediction` are -1, and nothing is `correct`.

    A table that has those rows already, as `sample_table` gives it, stays as it is; so the
    functions below take either.
    """
    if "blocks" in gates:
        return gates
    grouped = gates.groupby(["sample", "scale"], sort=True)
    table = grouped[["label", "prediction", "flops"]].first()
    table["blocks"] = grouped["gate"].sum()
    table["correct"] = (table["label"] == table["prediction"]) & (table["label"] != -1)
    return table.reset_index()


def usage(gates: pd.DataFrame, by: str | list[str] = "scale") -> pd.DataFrame:
    """The share of samples that use each block (columns), by `scale` (the paper's figure 4),
    another column, or several, as `["scale", "label"]`.
    """  # fmt: skip
    return gates.pivot_table(index=by, columns="block", values="gate", aggfunc="mean")


def usage_by_class(gates: pd.DataFrame) -> pd.DataFrame:
    """The mean share of blocks that samples of each class (rows) use at each S (columns)."""
    _check_classes(gates)
    return gates.pivot_table(index="label", columns="scale", values="gate", aggfunc="mean")


def distinct_paths(gates: pd.DataFrame) -> pd.Series:
    """How many different sets of blocks samples take, by S; 1 where gates heed S alone."""
    paths = gates.pivot(index=["scale", "sample"], columns="block", values="gate")
    found = {scale: len(rows.drop_duplicates()) for scale, rows in paths.groupby(level="scale")}
    return pd.Series(found, name="paths").rename_axis("scale")


def easy_and_hard(
    gates: pd.DataFrame, scale: float, count: int = 8, by: Literal["blocks", "flops"] = "blocks"
) -> pd.DataFrame:
    """The samples that use the fewest and the most blocks at one S (the paper's figure 6).

    Args:
      gates: of `gate_table`.
      scale: one of its S.
      count: of each kind, at most half of all; of equals those that come first in the split.
      by: `flops` for those that cost least and most.

    Returns:
      `samples`' rows, with a column `kind`: easy or hard; the easiest and the hardest first.
    """
    table = at_scale(samples(gates), scale)
    count = min(count, len(table) // 2)
    ordered = table.sort_values([by, "sample"])
    hard = ordered.sort_values([by, "sample"], ascending=[False, True]).head(count)
    easy = ordered[~ordered["sample"].isin(hard["sample"])].head(count)
    return pd.concat([easy.assign(kind="easy"), hard.assign(kind="hard")], ignore_index=True)


def right_and_wrong(
    gates: pd.DataFrame, right_at: float = 0.8, wrong_at: float = 0.6
) -> pd.DataFrame:
    """`samples`' rows at `right_at` of those right there and wrong at `wrong_at` (figure 7)."""
    _check_classes(gates)
    table = samples(gates)
    right, wrong = at_scale(table, right_at), at_scale(table, wrong_at)
    lost = wrong.loc[~wrong["correct"], ["sample", "prediction"]]
    lost = lost.rename(columns={"prediction": "prediction_at_less"})
    return right[right["correct"]].merge(lost, on="sample")


def _check_classes(table: pd.DataFrame) -> None:
    """Refuses a table of images that have label maps in place of classes."""
    if len(table) and bool((table["label"] == -1).to_numpy().all()):
        raise UserError(
            "The table's images have a class for each pixel, and none of their own: look at them "
            "with evaluate.maps."
        )


def at_scale(table: pd.DataFrame, scale: float) -> pd.DataFrame:
    """The rows of one S of any table with a column `scale`.

    Raises:
      UserError: there are none.
    """
    chosen = table.loc[np.isclose(table["scale"], scale)]
    if chosen.empty:
        held = ", ".join(f"{known:g}" for known in sorted(table["scale"].unique()))
        raise UserError(f"The scale is {scale:g}; the table holds {held}.")
    return chosen
