"""Which checkpoints of a run stay: the newest, and the best."""

from collections.abc import Mapping, Sequence
from typing import Any

from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN, PreservationPolicy

from urnet_jax.runs.meta import Score


def newest_and_best(
    keep: int, keep_best: int, scores: Mapping[int, Score | None]
) -> AnyPreservationPolicy:
    """Keeps the newest checkpoints and, beside them, the best of those that have a score.

    Args:
      keep: how many of the newest.
      keep_best: how many of the best.
      scores: by step; looked up at every save, so that later changes count.
    """
    return AnyPreservationPolicy([LatestN(keep), _Best(keep_best, scores)])


def best_steps(scores: Mapping[int, Score | None]) -> list[int]:
    """The steps that were evaluated, the best first, of equals the newest."""
    known = [(score, step) for step, score in scores.items() if score is not None]
    return [step for _, step in sorted(known, reverse=True)]


def kept_steps(keep: int, keep_best: int, scores: Mapping[int, Score | None]) -> set[int]:
    """The steps that `newest_and_best` keeps of those in `scores`."""
    return {*sorted(scores)[-keep:], *best_steps(scores)[:keep_best]}


class _Best(PreservationPolicy):
    def __init__(self, n: int, scores: Mapping[int, Score | None]) -> None:
        self._n, self._scores = n, scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        best = best_steps({c.step: self._scores.get(c.step) for c in checkpoints})[: self._n]
        return [c.step in best for c in checkpoints]
