"""What is asked of a server, as far as its schedule goes."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64


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


class Least(NamedTuple):
    """What a request takes at its smallest S, before times are corrected.

    Attributes:
      alone_s: seconds, by itself.
      rows: its share of full batches, as so many rows at the smallest S that there is.
    """

    alone_s: float
    rows: float


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
      reason: `late` (it cannot be answered in time now), `impossible` (nor ever), `full` (too many
        wait), `expired` (its time ran out while it waited), `stopping` (the server ends).
      retry_after_s: after which another try may well succeed.
    """

    def __init__(self, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.retry_after_s = reason, retry_after_s
