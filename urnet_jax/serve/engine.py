"""The thread that owns the device: requests in from any thread, answers out as futures."""

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32

from urnet_jax.errors import UserError
from urnet_jax.serve import budgets
from urnet_jax.serve.predictor import Prediction, Predictor
from urnet_jax.serve.schedule.costs import Costs
from urnet_jax.serve.schedule.policy import Policy
from urnet_jax.serve.schedule.request import Batch, Request, Shed
from urnet_jax.serve.schedule.scheduler import Scheduler

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What became of a request.

    Attributes:
      prediction: of its images.
      queue_s: how long it waited.
      compute_s: how long its batch took.
    """

    prediction: Prediction
    queue_s: float
    compute_s: float


@dataclasses.dataclass(eq=False)
class _Asked:
    """What belongs to a request that waits."""

    images: Float32[np.ndarray, "n H W C"]
    future: "concurrent.futures.Future[Answer]"


class Engine:
    """Answers requests by their deadlines; a thread of its own runs the batches."""

    def __init__(
        self, predictor: Predictor, *, policy: Policy | None = None, most_rows: int = 1024,
        margin_s: float = 0.002, observe: Callable[[str, Any], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        """Compiles what is needed, and starts.

        Args:
          predictor: of a network that was profiled on this device.
          policy: chooses S and batches, see `schedule.policy.Policy`.
          most_rows: images that may wait.
          margin_s: see `schedule.scheduler.Scheduler`.
          observe: f(event, what) is told of `answered` (Request, Answer), `late` (the same, past
            its deadline), `shed` (Request, reason) and `batch` (Batch); it must be fast.
          clock: seconds, of the deadlines too.

        Raises:
          UserError: the network does not heed S, or was not profiled on this device.
        """
        self._check(predictor)
        predictor.warm_up()
        self._predictor, self._clock = predictor, clock
        self._observe = observe or (lambda event, what: None)
        self._options: dict[str, Any] = {
            "policy": policy, "most_rows": most_rows, "margin_s": margin_s,
        }  # fmt: skip
        self._scheduler = self._make_scheduler(predictor)
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="urnet-engine", daemon=True)
        self._thread.start()

    @staticmethod
    def _check(predictor: Predictor) -> None:
        if not predictor.heeds_scale:
            raise UserError(
                "The gates of this network do not see S, so that it cannot bend under load: serve "
                "one whose gates do."
            )
        budgets.profile_here(predictor.bundle, "a server")

    def _make_scheduler(self, predictor: Predictor) -> Scheduler:
        profile = predictor.bundle.profile
        assert profile is not None
        return Scheduler(Costs(profile, predictor.batch_sizes), **self._options)

    @property
    def predictor(self) -> Predictor:
        """That answers now."""
        return self._predictor

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return self._scheduler.waiting.rows

    @property
    def most_images(self) -> int:
        """Of one request."""
        return self._scheduler.costs.largest

    @property
    def correction(self) -> float:
        """What batches take now, as a multiple of what they took when they were profiled."""
        return self._scheduler.costs.correction

    def submit(
        self, images: Float32[np.ndarray, "n H W C"], deadline: float, *, min_scale: float = 0.0,
        max_scale: float = 1.0, priority: int = 0,
    ) -> "concurrent.futures.Future[Answer]":  # fmt: skip
        """Asks for an answer before a time of the engine's clock.

        Args:
          images: that are known to be right, see `pixels.check`; at most `most_images`.
          deadline: when the answer is due.
          min_scale: S is at least this.
          max_scale: S is at most this.
          priority: higher ones are answered first.

        Returns:
          The answer, or `Shed` where its time ran out while it waited.

        Raises:
          Shed: it is refused at once.
        """
        now = self._clock()
        asked = _Asked(images, concurrent.futures.Future())
        request = Request(len(images), now, deadline, min_scale, max_scale, priority, asked)
        with self._changed:
            try:
                if self._stopping:
                    raise Shed("stopping", "The server is about to end.", 1.0)
                self._scheduler.admit(request, now)
            except Shed as shed:
                self._observe("shed", (request, shed.reason))
                raise
            self._changed.notify()
        return asked.future

    def swap(self, predictor: Predictor) -> None:
        """Has another network answer from the next batch on; nothing that waits is lost.

        Raises:
          UserError: it takes other images or smaller batches, or was not profiled on this device.
        """
        self._check(predictor)
        held = self._predictor
        if predictor.image_shape != held.image_shape or predictor.batch_sizes != held.batch_sizes:
            raise UserError(
                f"The network takes images of {predictor.image_shape} in batches of "
                f"{predictor.batch_sizes}, and the one that answers {held.image_shape} in "
                f"{held.batch_sizes}: start another server for it."
            )
        predictor.warm_up()  # While the other one answers.
        with self._changed:
            fresh = self._make_scheduler(predictor)
            self._scheduler.costs = fresh.costs
            self._predictor = predictor

    def stop(self) -> None:
        """Takes nothing more, answers what it took, and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        """The thread's work."""
        while True:
            with self._changed:
                while not len(self._scheduler.waiting) and not self._stopping:
                    self._changed.wait()
                batch, lost = self._scheduler.turn(self._clock())
                predictor = self._predictor
                if batch is None and self._stopping and not len(self._scheduler.waiting):
                    self._give_up(lost)
                    return
            self._give_up(lost)
            if batch is not None:
                self._answer(batch, predictor)

    def _give_up(self, lost: list[Request]) -> None:
        for request in lost:
            self._observe("shed", (request, "expired"))
            self._resolve(request, Shed("expired", "Its time ran out while it waited."))

    def _answer(self, batch: Batch, predictor: Predictor) -> None:
        """Runs a batch, and hands each request its part."""
        rows = [request.rows for request in batch.requests]
        images = np.concatenate([request.payload.images for request in batch.requests])
        scales = np.repeat(batch.scales.astype(np.float32), rows)
        start = self._clock()
        try:
            whole = predictor.predict(images, scales)
        except Exception as error:  # A device may fail in ways of its own; the server lives on.
            for request in batch.requests:
                self._resolve(request, error)
            return
        end = self._clock()
        with self._changed:
            self._scheduler.done(batch, end, end - start)
        self._observe("batch", batch)
        for request, part in zip(batch.requests, _split(whole, rows), strict=True):
            answer = Answer(part, start - request.arrival, end - start)
            self._observe("late" if end > request.deadline else "answered", (request, answer))
            self._resolve(request, answer)

    def _resolve(self, request: Request, result: Answer | Exception) -> None:
        future = request.payload.future
        if not future.set_running_or_notify_cancel():
            return  # Whoever asked is gone.
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _split(whole: Prediction, rows: list[int]) -> list[Prediction]:
    """The parts of a prediction that belong to each request."""
    ends = np.cumsum(rows)[:-1]
    parts = {
        field.name: np.split(getattr(whole, field.name), ends)
        for field in dataclasses.fields(whole)
    }
    return [Prediction(**{name: part[k] for name, part in parts.items()}) for k in range(len(rows))]
