"""How many requests are answered next, and at what S: ours, and what others may be."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float64

from urnet_jax.serve.schedule.costs import Costs
from urnet_jax.serve.schedule.request import Request

LEVELS = 20
"""S among which one is chosen for all requests that are due, each within its own bounds."""

HEADROOM = 1.2
"""Those that are not begun yet are planned to take so much longer. Without it S is chosen so that
all just fit, and whatever goes amiss costs answers; with it more are in time and more are right."""

PARTS = 48
"""In so many, at most, are those planned for that cannot be in the next batch: where many wait,
several as one, so that a plan takes about as long whatever waits."""

FULL = 0.8
"""The share of the room for waiting images that is planned with."""


class Outlook(NamedTuple):
    """What is known of requests that are still to come.

    Attributes:
      per_s: how many are expected in a second.
      most_rows: images that may wait.
    """

    per_s: float
    most_rows: int


class Policy(Protocol):
    """Chooses how many of the waiting requests are answered next, and the S of each."""

    def choose(
        self, requests: Sequence[Request], now: float, costs: Costs, outlook: Outlook
    ) -> tuple[int, Float64[np.ndarray, " n"]]:
        """How many of the first requests make the next batch, at least one, and their S.

        Args:
          requests: those that wait, in order, at least one.
          now: the time.
          costs: what batches take.
          outlook: on those to come.
        """
        ...


class Bending:
    """Ours: the S and the batch by which most answers are expected to be right and in time."""

    def choose(
        self, requests: Sequence[Request], now: float, costs: Costs, outlook: Outlook
    ) -> tuple[int, Float64[np.ndarray, " n"]]:
        """See `Policy`.

        All requests that wait are planned for, and as many to come as came lately: at each of some
        S, in batches of each size, giving up those that would be late. (Were only the next batch
        small, and those behind it full, each turn would save the most urgent request by a small
        one, and none would ever be full.) What is worth most, by the sum of top-1 of answers in
        time, is begun.
        """
        (rows, deadlines, low, high), nearest = _plan(requests, now, outlook, costs.largest)
        levels = np.linspace(costs.least_scale, 1.0, LEVELS)[:, None]
        # [levels, requests]; a request's bounds count more than what is best for all.
        bounds = np.stack([np.maximum(low, costs.least_scale), high])
        # Mostly all have the same, and one column says what holds for every request.
        own = bounds[:, :1] if (bounds == bounds[:, :1]).all() else bounds
        narrow = np.clip(levels, *own)
        scales = np.broadcast_to(narrow, (LEVELS, len(rows)))
        worth, ends = rows * costs.value(narrow), np.cumsum(rows)
        ascending = bool((np.diff(deadlines) >= 0).all())
        best, chosen = (-1.0, 0.0), (1, scales[0, :1])
        sizes = costs.sizes(sum(request.rows for request in requests))
        # As many whole requests as fit, one at least.
        counts = np.maximum(1, np.searchsorted(ends[:nearest], sizes, side="right"))
        # Of sizes that hold the same requests the largest stands for all.
        larger = np.append(np.diff(counts) > 0, True)
        for size, count in zip(sizes[larger].tolist(), counts[larger].tolist(), strict=True):
            first = costs.seconds(rows[:count], scales[:, :count])
            per_row = HEADROOM * costs.seconds_per_row(narrow, size)
            left = deadlines - now - first[:, None]
            # Behind the first batch the most urgent first, whatever their priorities: how many are
            # in time in all is what matters here.
            behind: Any = slice(count, None)
            if not ascending:
                behind = count + np.argsort(deadlines[count:], kind="stable")
            part = _served((rows * per_row)[:, behind], left[:, behind], size * per_row[:, :1])
            value = (worth[:, :count] * (left[:, :count] >= 0)).sum(axis=1)
            value += (worth[:, behind] * part).sum(axis=1)
            k = int(value.argmax())
            # Of plans that are worth as much the one that answers more in a second.
            found = (float(value[k]), count / float(first[k]))
            if found > best:
                best, chosen = found, (count, scales[k, :count])
        return chosen


def _plan(
    requests: Sequence[Request], now: float, outlook: Outlook, largest: int
) -> tuple[Float64[np.ndarray, "4 n"], int]:
    """What is planned for: the requests that wait, and those to come.

    Those that may be in the next batch are there one by one, all behind them in `PARTS` at most. Of
    those to come, within the time that a request is allowed, the deadline is after that time, or
    sooner where the queue would be full before.

    Args:
      requests: those that wait.
      now: the time.
      outlook: on those to come.
      largest: images that a batch has at most.

    Returns:
      Rows, deadlines and the two bounds of S; and how many of them may be in the next batch.
    """
    table = np.array([(r.rows, r.deadline, r.min_scale, r.max_scale) for r in requests], float).T
    allowed = float(np.mean([r.deadline - r.arrival for r in requests]))
    first = max(1, int(np.searchsorted(np.cumsum(table[0]), largest, side="right")))
    behind = table[:, first:]
    expected = outlook.per_s * allowed
    count = min(PARTS, int(expected))
    if count:
        mean = table.mean(axis=1)
        full_s = FULL * outlook.most_rows / (outlook.per_s * mean[0])
        come = now + (np.arange(count) + 1) * (allowed / count)
        to_come = np.repeat(mean[:, None], count, axis=1)
        to_come[0] *= expected / count
        to_come[1] = come + min(allowed, full_s)
        behind = np.concatenate([behind, to_come], axis=1)
    return np.concatenate([table[:, :first], _in_parts(behind)], axis=1), first


def _in_parts(plan: Float64[np.ndarray, "4 n"]) -> Float64[np.ndarray, "4 k"]:
    """Requests as `PARTS` at most, the most urgent first: a part is several of them as one.

    Parts have about as many rows each, and the mean deadline and bounds of theirs.
    """
    if plan.shape[1] <= PARTS:
        return plan
    plan = plan[:, np.argsort(plan[1], kind="stable")]
    ends = np.cumsum(plan[0])
    starts = np.unique(np.searchsorted(ends, np.arange(PARTS) * (ends[-1] / PARTS), side="right"))
    sums = np.add.reduceat(np.concatenate([plan[:1], plan[:1] * plan[1:]]), starts, axis=1)
    return np.concatenate([sums[:1], sums[1:] / sums[:1]])


def _served(each_s: np.ndarray, left_s: np.ndarray, batch_s: np.ndarray) -> np.ndarray:
    """What part of each request is answered in time, [levels, requests].

    As if they were a fluid: in turn each takes the time that it needs, or what there is until its
    deadline, and the rest of it is given up.

    Args:
      each_s: that a request needs, [levels, requests].
      left_s: until its deadline, [levels, requests], ascending.
      batch_s: of a batch, [levels, 1]: an answer is there when its batch ends, in the mean half of
        that later.
    """
    need = np.cumsum(each_s, axis=1)
    until = left_s - np.maximum(0.0, batch_s - each_s) / 2
    spent = need + np.minimum.accumulate(np.minimum(0.0, until - need), axis=1)
    spent = np.maximum.accumulate(np.maximum(spent, 0.0), axis=1)
    return np.clip(np.diff(spent, axis=1, prepend=0.0) / each_s, 0.0, 1.0)
