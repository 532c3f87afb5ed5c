"""Whether looking at the image pays: the network against itself, blind, at equal cost.

A gate's logit has a part that S decides and a part that the image decides. Without the latter all
images take one path, so that S = 0.5, say, would be a fixed smaller network.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Num

from urnet_jax.data.splits import Split
from urnet_jax.evaluate.evaluation import Evaluation, evaluate, summarize
from urnet_jax.evaluate.run import Run
from urnet_jax.nets.cost import flops_per_sample

DECIDES = 1e6
"""A logit's offset by which a block is used, or with a minus is not, whatever its gate says."""


def gains_of_looking(
    run: Run, scales: Sequence[float] | None = None, split: str | Split = "test",
    seen: Evaluation | None = None, batch_size: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """What the gates' look at the image is worth, a row for every S.

    The network is evaluated, and twice more with the image's part of the logits set to zero: each
    gate has its mean logit over the images at that S. All images then take one path, the blocks
    with the highest logits. Costs of such paths are steps; the two about the same cost are mixed,
    by accuracy, in the share that costs as much as the network with its eyes open.

    Args:
      run: of `run.load`.
      scales: the grid of S; by default the config's `eval.scales`.
      split: by its name, or opened.
      seen: its evaluation on that split at those S, with the gates' logits, where it is at hand.
      batch_size: samples per step; 0 takes the config's.

    Returns:
      `scale`, `examples`, `flops_share`, `distinct_paths`, `top1_percent` (or `miou_percent`),
      `fixed_percent` of the one without the image's part at the same cost, and `gain`, in points.
    """
    split = run.split(split) if isinstance(split, str) else split
    seen = run.evaluate(scales, split) if seen is None else seen
    size = min(batch_size or run.config.eval.batch_size, split.num_examples)
    paths = [fixed_paths(seen, k) for k in range(len(seen.scales))]
    ends = [_about(seen, k, path) for k, path in enumerate(paths)]
    less, more = (
        _reached(
            run, split, seen, [p[pair[n]] for p, (pair, _) in zip(paths, ends, strict=True)], size
        )
        for n in (0, 1)
    )
    share = np.array([share for _, share in ends])
    summary: Any = summarize(seen)
    table = summary[["scale", "examples", "flops_share", "distinct_paths"]]
    reached, fixed = seen.measured, (1 - share) * less + share * more
    of_network = {seen.measure.column: reached}
    return table.assign(**of_network, fixed_percent=fixed, gain=reached - fixed)


def gains_for_people(table: pd.DataFrame) -> str:
    """`gains_of_looking`'s table for people: what the image's part adds, S by S."""
    rows: Any = table.itertuples()
    gains = ", ".join(
        f"{row.gain:+.2f} at S = {row.scale:g} ({row.distinct_paths} paths)" for row in rows
    )
    return f"Points that gates gain by looking at the image, at equal cost: {gains}."


def fixed_paths(seen: Evaluation, k: int) -> Num[np.ndarray, "n G"]:
    """The paths without the image's part at the k-th S, each with one more block than the last.

    From no block to all of them, in the order of the gates' mean logits.
    """
    assert seen.gate_logits is not None
    order = np.argsort(-seen.gate_logits[k].mean(axis=0, dtype=np.float64), kind="stable")
    place = np.empty(seen.num_gates, int)
    place[order] = np.arange(seen.num_gates)
    return (place < np.arange(seen.num_gates + 1)[:, None]).astype(np.float32)


def _about(
    seen: Evaluation, k: int, paths: Num[np.ndarray, "n G"]
) -> tuple[tuple[int, int], float]:
    """The two paths between whose costs the network's lies, and the share of the dearer one."""
    costs = np.asarray(flops_per_sample(seen.arch, paths), float)
    cost = seen.flops[k].mean()
    below = int(np.clip(np.searchsorted(costs, cost, "right") - 1, 0, len(costs) - 2))
    share = (cost - costs[below]) / (costs[below + 1] - costs[below])
    return (below, below + 1), float(np.clip(share, 0, 1))


def _reached(
    run: Run, split: Split, seen: Evaluation, paths: Sequence[Float[np.ndarray, " G"]],
    size: int,
) -> Float[np.ndarray, " k"]:  # fmt: skip
    """The measure where all images take the k-th path at the k-th S."""
    by_scale = dict(zip(seen.scales, paths, strict=True))
    forced = evaluate(
        run.eval_step, *run.variables, split, run.config, seen.scales, size, progress=False,
        mesh=run.mesh, offset=functools.partial(_forced, by_scale),
    )  # fmt: skip
    return forced.measured


def _forced(paths: dict[float, np.ndarray], scale: float) -> Float[np.ndarray, " G"]:
    return DECIDES * (2 * paths[scale] - 1)
