"""Which requests are answered next, and at what S: decided from numbers alone, without a clock.

Time is an argument everywhere, so that a simulation and a server run the same code.
"""

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float64

from urnet_jax.serve.costs import Costs

LEVELS = 12
"""S among which one is chosen for all requests that are due, each within its own bounds."""

MOST_EXPECTED = 256
"""Requests that are expected to come and are planned for, at most."""

PLANNED = 512
"""Requests that wait and are planned for, at most."""

RATE_OVER_S = 1.0
"""Arrivals of so many last seconds say how many are expected."""


@dataclasses.dataclass(eq=False, slots=True)
class Request:
    """Images to be answered together.

    Attributes:
      rows: how many images.
      arrival: when it came, in seconds of any clock.
      deadline: when its answer is due, of the same clock.
      min_scale: S is at least this.
      max_scale: S is at most this.
      priority: higher ones are answered first.
      payload: whatever belongs to it; not looked at.
    """

    rows: int
    arrival: float
    deadline: float
    min_scale: float = 0.0
    max_scale: float = 1.0
    priority: int = 0
    payload: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """What is to be answered now.

    Attributes:
      requests: in the order of their images.
      scales: S of each request.
      expected_s: what it is expected to take.
    """

    requests: tuple[Request, ...]
    scales: Float64[np.ndarray, " n"]
    expected_s: float

    @property
    def rows(self) -> int:
        return sum(request.rows for request in self.requests)


class Shed(Exception):
    """A request that is not answered, and why.

    Attributes:
      reason: `late` (it cannot be answered in time), `full` (too many wait), `expired` (its time
        ran out while it waited), `stopping` (the server ends).
      retry_after_s: after which another try may well succeed.
    """

    def __init__(self, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.retry_after_s = reason, retry_after_s


class Waiting:
    """The queue: by priority, then by deadline, then by arrival."""

    def __init__(self) -> None:
        self._queue: list[Request] = []
        self._keys: list[tuple[float, float, int]] = []
        self._least: list[float] = []
        self._count = itertools.count()
        self.rows = 0

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._queue)

    def __getitem__(self, place: slice) -> list[Request]:
        return self._queue[place]

    def place_of(self, request: Request) -> int:
        """How many would be answered before it."""
        return bisect.bisect(self._keys, (-request.priority, request.deadline, 1 << 62))

    def least_s(self, place: int) -> float:
        """The sum of what those before a place were said to take at least."""
        return sum(self._least[:place])

    def add(self, request: Request, least_s: float) -> None:
        """Has a request wait, which takes `least_s` seconds of full batches at least."""
        key = (-request.priority, request.deadline, next(self._count))
        place = bisect.bisect(self._keys, key)
        self._keys.insert(place, key)
        self._queue.insert(place, request)
        self._least.insert(place, least_s)
        self.rows += request.rows

    def take(self, places: Sequence[int]) -> list[Request]:
        """Removes the requests at these places, which ascend, and returns them."""
        taken = [self._queue[place] for place in places]
        for place in reversed(places):
            del self._queue[place], self._keys[place], self._least[place]
        self.rows -= sum(request.rows for request in taken)
        return taken


class Policy(Protocol):
    """Chooses how many of the waiting requests are answered next, and the S of each."""

    def choose(
        self, requests: Sequence[Request], now: float, costs: Costs, expected: float
    ) -> tuple[int, Float64[np.ndarray, " n"]]:
        """How many of the first requests make the next batch, at least one, and their S.

        Args:
          requests: those that wait, in order, at least one.
          now: the time.
          costs: what batches take.
          expected: requests that are expected to come, in a second.
        """
        ...


class Bending:
    """Ours: the S and the batch by which most answers are expected to be right and in time."""

    def choose(
        self, requests: Sequence[Request], now: float, costs: Costs, expected: float
    ) -> tuple[int, Float64[np.ndarray, " n"]]:
        """See `Policy`.

        All requests that wait are planned for, and as many to come as came lately: at each of some
        S, in batches of each size. (Were only the next batch small, and those behind it full, each
        turn would save the most urgent request by a small one, and none would ever be full.) What
        is worth most, by the sum of top-1 of answers in time, is begun.
        """
        rows, deadlines, low, high = _plan(requests, now, expected)
        levels = np.linspace(costs.least_scale, 1.0, LEVELS)[:, None]
        # [levels, requests]; a request's bounds count more than what is best for all.
        scales = np.clip(levels, np.maximum(low, costs.least_scale), high)
        worth, ends = rows * costs.value(scales), np.cumsum(rows)
        best, chosen = (-1.0, 0.0), (1, scales[0, :1])
        real_rows = int(ends[len(requests) - 1])
        for size in costs.sizes(real_rows):
            # As many whole requests as fit, one at least.
            count = max(1, int(np.searchsorted(ends[: len(requests)], size, side="right")))
            first = costs.seconds(rows[:count], scales[:, :count])
            spent = np.cumsum(rows * costs.seconds_per_row(scales, int(size)), axis=1)
            finish = now + first[:, None] + _behind(spent, ends, count, int(size))
            value = (worth * (finish <= deadlines)).sum(axis=1)
            k = int(value.argmax())
            # Of plans that are worth as much the one that answers more in a second.
            found = (float(value[k]), count / float(first[k]))
            if found > best:
                best, chosen = found, (count, scales[k, :count])
        return chosen


def _plan(
    requests: Sequence[Request], now: float, expected: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows, deadlines and bounds of S of the requests that wait, and of those to come."""
    table = np.array([(r.rows, r.deadline, r.min_scale, r.max_scale) for r in requests], float)
    rows, deadlines, low, high = table.T
    allowed = float(np.mean([r.deadline - r.arrival for r in requests]))
    count = min(MOST_EXPECTED, int(expected * allowed))
    if count:
        due = now + allowed + (np.arange(count) + 1) * (allowed / count)
        rows = np.concatenate([rows, np.full(count, rows.mean())])
        deadlines = np.concatenate([deadlines, due])
        low, high = (np.concatenate([x, np.full(count, x.mean())]) for x in (low, high))
    return rows, deadlines, low, high


def _behind(spent: np.ndarray, ends: np.ndarray, count: int, size: int) -> np.ndarray:
    """Seconds from the end of the first batch to that of each request's own, [levels, requests].

    Args:
      spent: seconds of each request and all before it, [levels, requests].
      ends: rows of each request and all before it.
      count: requests of the first batch.
      size: rows of each batch that follows.
    """
    batch = np.ceil((ends[count:] - ends[count - 1]) / size)
    last = count + np.searchsorted(batch, batch, side="right") - 1
    last = np.concatenate([np.full(count, count - 1), last])
    return spent[:, last] - spent[:, count - 1, None]


class Scheduler:
    """Admits requests, and makes batches of them. Not safe for several threads."""

    def __init__(
        self, costs: Costs, *, policy: Policy | None = None, most_rows: int = 1024,
        margin_s: float = 0.002,
    ) -> None:  # fmt: skip
        """Begins with nothing waiting.

        Args:
          costs: what batches take; `done` corrects it.
          policy: chooses S and batches; by default `Bending`.
          most_rows: images that may wait.
          margin_s: an answer is planned to be there so much before its deadline.
        """
        self.costs, self.policy = costs, policy or Bending()
        self.most_rows, self.margin_s = most_rows, margin_s
        self.waiting = Waiting()
        self._arrivals: collections.deque[float] = collections.deque(maxlen=4096)
        self._busy_until = 0.0

    def expected(self, now: float) -> float:
        """Requests that came in each of the last seconds, those included that were refused."""
        while self._arrivals and self._arrivals[0] < now - RATE_OVER_S:
            self._arrivals.popleft()
        return len(self._arrivals) / RATE_OVER_S

    def admit(self, request: Request, now: float) -> None:
        """Lets a request wait.

        Raises:
          Shed: too many wait, or it would be late even at the smallest S.
        """
        self._arrivals.append(now)
        place = self.waiting.place_of(request)
        # Where others wait, it shares a batch with them.
        own_s = self._alone(request)
        if place:
            own_s = max(own_s, self.costs.alone(self.costs.largest, self.costs.least_scale))
        finish = now + self._ahead(place, now) + own_s
        if self.waiting.rows + request.rows > self.most_rows:
            raise Shed(
                "full", f"{self.waiting.rows} images wait already, of {self.most_rows} at most.",
                self._ahead(len(self.waiting), now),
            )  # fmt: skip
        late = finish + self.margin_s - request.deadline
        if late > 0:
            raise Shed("late", "It cannot be answered before its deadline.", late)
        least = max(request.min_scale, self.costs.least_scale)
        per_row = float(self.costs.seconds_per_row(np.array(least))) / self.costs.correction
        self.waiting.add(request, request.rows * per_row)

    def _ahead(self, place: int, now: float) -> float:
        """Seconds until the requests before this place are answered, each at its smallest S."""
        running = max(0.0, self._busy_until - now)
        return running + self.costs.correction * self.waiting.least_s(place)

    def turn(self, now: float) -> tuple[Batch | None, list[Request]]:
        """What is to be answered now, if anything is, and the requests that are given up.

        Given up is what cannot be answered in time any more, even alone and at once, and what would
        be late in the batch that is worth most. Neither is begun.
        """
        lost = self._expired(now)
        while len(self.waiting):
            queue = self.waiting[:PLANNED]
            # Answers are planned to be there a little before they are due.
            count, scales = self.policy.choose(
                queue, now + self.margin_s, self.costs, self.expected(now)
            )
            taken, scales = self.waiting.take(range(count)), np.asarray(scales, np.float64)
            rows = np.array([request.rows for request in taken], float)
            finish = now + float(self.costs.seconds(rows, scales))
            in_time = [request.deadline >= finish for request in taken]
            lost += list(itertools.compress(taken, [not kept for kept in in_time]))
            if not any(in_time):
                continue
            kept = tuple(itertools.compress(taken, in_time))
            expected_s = float(self.costs.seconds(rows[in_time], scales[in_time]))
            self._busy_until = now + expected_s
            return Batch(kept, scales[in_time], expected_s), lost
        return None, lost

    def _expired(self, now: float) -> list[Request]:
        """Removes the requests that cannot be answered in time any more, even alone and at once."""
        soon = now + self.costs.alone(self.costs.largest, 1.0)  # No request takes longer.
        late = [
            place for place, request in enumerate(self.waiting)
            if request.deadline < soon and now + self._alone(request) > request.deadline
        ]  # fmt: skip
        return self.waiting.take(late)

    def _alone(self, request: Request) -> float:
        """What it takes by itself, at its smallest S."""
        return self.costs.alone(request.rows, max(request.min_scale, self.costs.least_scale))

    def done(self, batch: Batch, now: float, took_s: float) -> None:
        """Says that a batch is answered, and how long that took."""
        self._busy_until = now
        self.costs.observe(batch.expected_s, took_s)
