"""What the last seconds were like, for the page."""

import collections
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WINDOW_S = 10.0

MOST = 20_000
"""Requests that are remembered, at most."""


class Recent:
    """Remembers the requests of the last seconds; safe to be told of them from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._events: collections.deque[tuple[float, str, float, float]] = collections.deque(
            maxlen=MOST
        )

    def add(self, outcome: str, latency_s: float = 0.0, scale: float = 0.0) -> None:
        """A request that was `answered`, answered `late`, or `shed`."""
        with self._lock:
            self._events.append((self._clock(), outcome, latency_s, scale))

    def summary(self) -> dict[str, Any]:
        """Rates, latencies, S and attainment; None where there is nothing to tell."""
        now = self._clock()
        with self._lock:
            while self._events and self._events[0][0] < now - WINDOW_S:
                self._events.popleft()
            events = list(self._events)
        # Where more came than are remembered, those cover less time.
        span = WINDOW_S if len(events) < MOST else max(now - events[0][0], 1e-3)
        answers = [event for event in events if event[1] != "shed"]
        latency = np.array([event[2] for event in answers])
        found: dict[str, Any] = {
            "requests_per_s": len(answers) / span,
            "shed_per_s": (len(events) - len(answers)) / span,
            "p50_ms": None, "p99_ms": None, "mean_scale": None, "attainment": None,
        }  # fmt: skip
        if answers:
            p50, p99 = np.percentile(latency, [50, 99])
            found["p50_ms"], found["p99_ms"] = 1e3 * float(p50), 1e3 * float(p99)
            found["mean_scale"] = float(np.mean([event[3] for event in answers]))
        if events:
            in_time = sum(event[1] == "answered" for event in events)
            found["attainment"] = in_time / len(events)
        return found
