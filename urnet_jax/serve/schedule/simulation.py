"""A scheduler on simulated time: what it would do with requests that come at given times."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float64

from urnet_jax.serve.schedule.request import Batch, Request, Shed
from urnet_jax.serve.schedule.scheduler import Scheduler


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What became of n requests.

    Attributes:
      finished: when each was answered; NaN for those that were shed.
      scales: S of each; NaN likewise.
      deadlines: of each.
      reasons: why each was shed; empty for those that were answered.
      batches: how many there were.
    """

    finished: Float64[np.ndarray, " n"]
    scales: Float64[np.ndarray, " n"]
    deadlines: Float64[np.ndarray, " n"]
    reasons: tuple[str, ...]
    batches: int

    @property
    def in_time(self) -> Bool[np.ndarray, " n"]:
        return self.finished <= self.deadlines

    @property
    def attainment(self) -> float:
        """The share of all requests that were answered in time."""
        return float(self.in_time.mean())

    @property
    def mean_scale(self) -> float:
        """Of the answers in time; NaN where there are none."""
        return float(self.scales[self.in_time].mean()) if self.in_time.any() else float("nan")


def simulate(
    requests: Sequence[Request], scheduler: Scheduler, service: Callable[[Batch], float]
) -> Outcome:
    """Runs a scheduler, and one device that answers its batches one after another.

    Args:
      requests: in order of their arrival.
      scheduler: with nothing waiting.
      service: f(batch) -> the seconds that it takes, which may differ from what is expected.
    """
    places = {id(request): place for place, request in enumerate(requests)}
    finished, scales = (np.full(len(requests), np.nan) for _ in range(2))
    reasons, batches, now, coming = [""] * len(requests), 0, 0.0, 0

    def arrive(until: float) -> None:
        nonlocal coming
        while coming < len(requests) and requests[coming].arrival <= until:
            try:
                scheduler.admit(requests[coming], requests[coming].arrival)
            except Shed as shed:
                reasons[coming] = shed.reason
            coming += 1

    while coming < len(requests) or len(scheduler.waiting):
        if not len(scheduler.waiting):
            now = max(now, requests[coming].arrival)
        arrive(now)
        batch, lost = scheduler.turn(now)
        for request in lost:
            reasons[places[id(request)]] = "expired"
        if batch is None:
            continue
        took_s = service(batch)
        arrive(now + took_s)
        now += took_s
        scheduler.done(batch, now, took_s)
        for request, scale in zip(batch.requests, batch.scales, strict=True):
            place = places[id(request)]
            finished[place], scales[place] = now, scale
        batches += 1
    deadlines = np.array([request.deadline for request in requests])
    return Outcome(finished, scales, deadlines, tuple(reasons), batches)
