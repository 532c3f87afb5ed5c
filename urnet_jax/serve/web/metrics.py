"""What a server counts, for Prometheus and for Triton's clients."""

import threading
import time
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from urnet_jax.serve.engine import Answer, Engine
from urnet_jax.serve.schedule.request import Batch
from urnet_jax.serve.web.recent import Recent

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

OUTCOMES = ("answered", "late", "shed", "failed", "bad")


class Metrics:
    """Counts requests by what became of them; safe to be told of them from several threads."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": registry}
        self.requests = Counter(
            "urnet_requests", "Requests: answered in time or late, shed, failed, or bad.",
            ["outcome"], **of,
        )  # fmt: skip
        self.shed = Counter(
            "urnet_shed", "Requests that were shed, by the reason.", ["reason"], **of
        )
        self.images = Counter("urnet_images", "Images that were answered.", **of)
        self.batches = Counter("urnet_batches", "Batches that were run.", **of)
        self.latency = Histogram(
            "urnet_latency_seconds", "From when a request is read to its answer.", buckets=SECONDS,
            **of,
        )  # fmt: skip
        self.queue = Histogram("urnet_queue_seconds", "Of waiting.", buckets=SECONDS, **of)
        self.compute = Histogram("urnet_compute_seconds", "Of a batch.", buckets=SECONDS, **of)
        self.scale = Histogram(
            "urnet_scale", "S of each answer.", buckets=[k / 10 for k in range(1, 11)], **of
        )
        self.attainment = Gauge(
            "urnet_attainment", "Share of requests answered in time, of those that were right.",
            **of,
        )  # fmt: skip
        self.waiting = Gauge("urnet_waiting_images", "Images that wait.", **of)
        self.correction = Gauge(
            "urnet_time_correction", "What batches take, over what they took when profiled.", **of
        )
        self.compilations = Gauge("urnet_compilations", "Programs that were compiled.", **of)
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
        self.recent = Recent()
        self._lock = threading.Lock()
        self._totals: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self._seconds = {"queue": 0.0, "compute": 0.0, "latency": 0.0}
        self._last = 0.0

    def observe(self, event: str, what: Any) -> None:
        """As `Engine` tells it."""
        if event == "batch":
            assert isinstance(what, Batch)
            self.batches.inc()
            return
        with self._lock:
            self._totals[event] += 1
        self.requests.labels(event).inc()
        if event == "shed":
            self.shed.labels(what[1]).inc()
        if event in ("shed", "failed"):
            self.recent.add("shed")
        elif event in ("answered", "late"):
            self._answered(event, *what)

    def _answered(self, event: str, request: Any, answer: Answer) -> None:
        latency, scale = answer.queue_s + answer.compute_s, float(np.mean(answer.prediction.scale))
        self.recent.add(event, latency, scale)
        self.images.inc(request.rows)
        for histogram, seconds in (
            (self.latency, latency), (self.queue, answer.queue_s), (self.compute, answer.compute_s),
        ):  # fmt: skip
            histogram.observe(seconds)
        self.scale.observe(scale)
        with self._lock:
            self._seconds["queue"] += answer.queue_s
            self._seconds["compute"] += answer.compute_s
            self._seconds["latency"] += latency
            self._last = time.time()

    def text(self, engine: Engine) -> bytes:
        """For Prometheus."""
        with self._lock:
            totals = dict(self._totals)
        right = sum(totals[name] for name in OUTCOMES[:-1])
        self.attainment.set(totals["answered"] / right if right else 1.0)
        self.waiting.set(engine.waiting)
        self.correction.set(engine.correction)
        self.compilations.set(engine.predictor.compilations)
        return generate_latest(self._registry)

    def stats(self, name: str, version: str) -> dict[str, Any]:
        """What `GET /v2/models/M/stats` says, as Triton does; times in nanoseconds."""
        with self._lock:
            totals, seconds, last = dict(self._totals), dict(self._seconds), self._last
        answered = totals["answered"] + totals["late"]

        def of(count: int, total_s: float) -> dict[str, int]:
            return {"count": count, "ns": round(1e9 * total_s)}

        none, shed = of(answered, 0.0), totals["shed"] + totals["failed"]
        return {
            "model_stats": [{
                "name": name, "version": version, "last_inference": round(1e3 * last),
                "inference_count": _whole(self.images), "execution_count": _whole(self.batches),
                "inference_stats": {
                    "success": of(answered, seconds["latency"]), "fail": of(shed, 0.0),
                    "queue": of(answered, seconds["queue"]), "compute_input": none,
                    "compute_infer": of(answered, seconds["compute"]), "compute_output": none,
                },
                "batch_stats": [],
            }]
        }  # fmt: skip


def _whole(counter: Counter) -> int:
    (metric,) = counter.collect()
    return int(next(s.value for s in metric.samples if s.name.endswith("_total")))
