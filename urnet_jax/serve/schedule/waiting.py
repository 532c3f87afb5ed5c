"""The queue: by priority, then by deadline, then by arrival."""

import bisect
import itertools
from collections.abc import Sequence

from urnet_jax.serve.schedule.request import Least, Request


class Waiting:
    """Requests in the order in which they are answered."""

    def __init__(self) -> None:
        self._queue: list[Request] = []
        self._keys: list[tuple[float, float, int]] = []
        self._least: list[Least] = []
        self._count = itertools.count()
        self.rows = 0

    def __len__(self) -> int:
        return len(self._queue)

    def first(self, count: int) -> list[Request]:
        """The first requests, as many as there are and `count` at most."""
        return self._queue[:count]

    def ahead_of(self, request: Request) -> tuple[int, float]:
        """How many requests would be answered before it, and their `Least.rows`."""
        place = bisect.bisect(self._keys, (-request.priority, request.deadline, 1 << 62))
        return place, sum(least.rows for least in self._least[:place])

    def least_rows(self) -> float:
        """The sum of `Least.rows`."""
        return sum(least.rows for least in self._least)

    def add(self, request: Request, least: Least) -> None:
        """Has a request wait."""
        key = (-request.priority, request.deadline, next(self._count))
        place = bisect.bisect(self._keys, key)
        self._keys.insert(place, key)
        self._queue.insert(place, request)
        self._least.insert(place, least)
        self.rows += request.rows

    def late(self, now: float, correction: float) -> list[int]:
        """The places of those that cannot be answered in time, even alone and at once."""
        pairs = zip(self._queue, self._least, strict=True)
        return [
            place for place, (request, least) in enumerate(pairs)
            if now + correction * least.alone_s > request.deadline
        ]  # fmt: skip

    def take(self, places: Sequence[int]) -> list[Request]:
        """Removes the requests at these places, which ascend, and returns them."""
        taken = [self._queue[place] for place in places]
        for place in reversed(places):
            del self._queue[place], self._keys[place], self._least[place]
        self.rows -= sum(request.rows for request in taken)
        return taken
