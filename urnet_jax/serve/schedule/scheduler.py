"""Which requests are answered next, and at what S: decided from numbers alone, without a clock.

Time is an argument everywhere, so that a simulation and a server run the same code.
"""

import collections
import itertools
import math

import numpy as np
from jaxtyping import Bool, Float64

from urnet_jax.serve.schedule.costs import FASTER, RELAXES_S, SLOWER, Costs
from urnet_jax.serve.schedule.policy import Bending, Outlook, Policy
from urnet_jax.serve.schedule.request import Batch, Least, Request, Shed
from urnet_jax.serve.schedule.waiting import Waiting

PLANNED = 512
"""Requests that wait and are planned for, at most."""

RATE_OVER_S, RISE_OVER_S = 1.0, 0.1
"""Arrivals of so many last seconds say how many are expected. The shorter counts where it surely
has more: of n arrivals n - 2 sqrt(n), so that a lone request is no surge."""

LONGEST_S = 0.1
"""A hand-over that took longer counts as this."""

REMEMBERED = 16_384
"""Arrivals that are remembered for that, at most."""


class Scheduler:
    """Admits requests, and makes batches of them. Not safe for several threads."""

    def __init__(
        self, costs: Costs, *, policy: Policy | None = None, most_rows: int = 1024,
        margin_s: float = 0.002,
    ) -> None:  # fmt: skip
        """Begins with nothing waiting.

        Args:
          costs: what batches take; `done` corrects it.
          policy: chooses S and batches; by default `policy.Bending`.
          most_rows: images that may wait.
          margin_s: an answer is planned to be there so much before its deadline, at least;
            `handed_over` raises it.
        """
        self.costs, self.policy = costs, policy or Bending()
        self.most_rows, self.margin_s, self._least_margin_s = most_rows, margin_s, margin_s
        self.waiting = Waiting()
        self._arrivals: collections.deque[float] = collections.deque(maxlen=REMEMBERED)
        self._busy_until = self._told = 0.0

    def expected(self, now: float) -> float:
        """Requests a second of late, those included that were refused."""
        while self._arrivals and self._arrivals[0] < now - RATE_OVER_S:
            self._arrivals.popleft()
        last = itertools.takewhile(lambda came: came >= now - RISE_OVER_S, reversed(self._arrivals))
        count = sum(1 for _ in last)
        return max(len(self._arrivals) / RATE_OVER_S, (count - 2 * count**0.5) / RISE_OVER_S)

    def admit(self, request: Request, now: float) -> None:
        """Lets a request wait.

        Raises:
          Shed: too many wait, or it would be late even at the smallest S.
        """
        self._arrivals.append(now)
        if now >= self._busy_until and not len(self.waiting):
            # Nothing runs that could say whether batches, and answers on their way, still take as
            # long as the last ones did.
            idle_s = now - max(self._told, self._busy_until)
            self.costs.relax(idle_s)
            over = self.margin_s - self._least_margin_s
            self.margin_s = self._least_margin_s + over * math.exp(-idle_s / RELAXES_S)
            self._told = now
        least = self._least(request)
        # As it was measured: what holds it up now may pass.
        allowed, shortest = request.deadline - request.arrival, least.alone_s + self._least_margin_s
        if shortest > allowed:
            raise Shed(
                "impossible", f"It is due within {1e3 * allowed:.3g} ms, and takes "
                f"{1e3 * shortest:.3g} ms at least.",
            )  # fmt: skip
        if self.waiting.rows + request.rows > self.most_rows:
            raise Shed(
                "full", f"{self.waiting.rows} images wait already, of {self.most_rows} at most.",
                self._backlog_s(now),
            )  # fmt: skip
        late = now + self._soonest_s(request, least, now) + self.margin_s - request.deadline
        if late > 0:
            raise Shed("late", "It cannot be answered before its deadline.", late)
        self.waiting.add(request, least)

    def _least(self, request: Request) -> Least:
        return self.costs.least_of(request.rows, request.min_scale)

    def replace_costs(self, costs: Costs) -> None:
        """Has requests from now on, and those that wait, take what they take on another network."""
        costs.correction = self.costs.correction  # It is the machine's.
        self.costs = costs
        for request in self.waiting.take(range(len(self.waiting))):
            self.waiting.add(request, self._least(request))

    def _soonest_s(self, request: Request, least: Least, now: float) -> float:
        """Seconds until its answer, all before it at their smallest S, in batches of any size."""
        place, rows = self.waiting.ahead_of(request)
        running, costs = max(0.0, self._busy_until - now), self.costs
        alone = costs.correction * least.alone_s
        if not place:
            return running + alone
        # It shares a batch with those before it: a small one is sooner there, a large one serves
        # more of them in a second.
        found = []
        for size in costs.batch_sizes:
            batch_s = costs.least_s(size)
            found.append(rows * batch_s / size + max(alone, batch_s))
        return running + min(found)

    def _backlog_s(self, now: float) -> float:
        """Seconds until all that wait are answered, each at its smallest S."""
        per_row_s = self.costs.least_s(self.costs.largest) / self.costs.largest
        return max(0.0, self._busy_until - now) + per_row_s * self.waiting.least_rows()

    def retry_after_s(self, now: float) -> float:
        """After which one that was given up may well be answered."""
        return self._backlog_s(now)

    def turn(self, now: float) -> tuple[Batch | None, list[Request]]:
        """What is to be answered now, if anything is, and the requests that are given up.

        Given up is what cannot be answered in time any more, even alone and at once, and what would
        be late in the batch that is worth most. Neither is begun.
        """
        lost = self.waiting.take(self.waiting.late(now, self.costs.correction))
        outlook = Outlook(self.expected(now), self.most_rows)
        while len(self.waiting):
            # Answers are planned to be there a little before they are due.
            count, scales = self.policy.choose(
                self.waiting.first(PLANNED), now + self.margin_s, self.costs, outlook
            )
            taken, scales = self.waiting.take(range(count)), np.asarray(scales, np.float64)
            finish = now + self._seconds(taken, scales)
            late = np.array([request.deadline < finish for request in taken])
            if late.any():
                lost += list(itertools.compress(taken, late))
                taken, scales = self._without(taken, scales, late, finish)
                taken, scales = self._in_time(taken, scales, now)
            if taken:
                expected_s = self._seconds(taken, scales)
                self._busy_until = now + expected_s
                return Batch(tuple(taken), scales, expected_s), lost
        return None, lost

    def _seconds(self, requests: list[Request], scales: Float64[np.ndarray, " n"]) -> float:
        rows = np.array([request.rows for request in requests], float)
        return float(self.costs.seconds(rows, scales))

    def _without(
        self, requests: list[Request], scales: Float64[np.ndarray, " n"],
        late: Bool[np.ndarray, " n"], finish: float,
    ) -> tuple[list[Request], Float64[np.ndarray, " k"]]:  # fmt: skip
        """A batch that ends at `finish`, without those that are late then: others take their room.

        Those have the S, in the mean, of those in whose place they are, if their bounds have it.
        """
        rows = np.array([request.rows for request in requests])
        room, scale = int(rows[late].sum()), float(np.average(scales[late], weights=rows[late]))
        places = []
        for place, request in enumerate(self.waiting.first(PLANNED)):
            fits = request.rows <= room and request.min_scale <= scale
            if fits and request.deadline >= finish:
                places.append(place)
                room -= request.rows
            if not room:
                break
        more = self.waiting.take(places)
        own = [min(scale, request.max_scale) for request in more]
        return list(itertools.compress(requests, ~late)) + more, np.append(scales[~late], own)

    def _in_time(
        self, requests: list[Request], scales: Float64[np.ndarray, " n"], now: float
    ) -> tuple[list[Request], Float64[np.ndarray, " k"]]:
        """Of a batch those that are in time; the others wait again.

        It may be smaller than the one that was chosen, and the share of each in its time larger.
        """
        while requests:
            finish = now + self._seconds(requests, scales)
            late = np.array([request.deadline < finish for request in requests])
            if not late.any():
                break
            for request in itertools.compress(requests, late):
                self.waiting.add(request, self._least(request))
            requests, scales = list(itertools.compress(requests, ~late)), scales[~late]
        return requests, scales

    def handed_over(self, took_s: float) -> None:
        """Says how long an answer took from its batch's end to whoever asked."""
        follows = SLOWER if took_s > self.margin_s else FASTER
        moved = self.margin_s + follows * (min(took_s, LONGEST_S) - self.margin_s)
        self.margin_s = max(self._least_margin_s, moved)

    def done(self, batch: Batch, now: float, took_s: float) -> None:
        """Says that a batch is answered, and how long that took."""
        self._busy_until = self._told = now
        self.costs.observe(batch.expected_s, took_s)
