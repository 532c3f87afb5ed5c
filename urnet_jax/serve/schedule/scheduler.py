"""Which requests are answered next, and at what S: decided from numbers alone, without a clock.

Time is an argument everywhere, so that a simulation and a server run the same code.
"""

import bisect
import collections
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from urnet_jax.serve.schedule.costs import Costs
from urnet_jax.serve.schedule.policy import Bending, Policy
from urnet_jax.serve.schedule.request import Batch, Request, Shed

PLANNED = 512
"""Requests that wait and are planned for, at most."""

RATE_OVER_S = 1.0
"""Arrivals of so many last seconds say how many are expected."""

RATE_OVER_S = 1.0
"""Arrivals of so many last seconds say how many are expected."""


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
