"""The thread that owns the device: requests in from any thread, answers out as futures."""

import concurrent.futures
import dataclasses
import itertools
import threading
import time
import traceback
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
      step: of the checkpoint that answered.
    """

    prediction: Prediction
    queue_s: float
    compute_s: float
    step: int


class Failed(RuntimeError):
    """A batch, or the engine itself, failed in a way that is no fault of the request."""


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
            its deadline), `shed` (Request, reason), `failed` (Request, error) and `batch` (Batch);
            it must be fast, and an error of its own is printed and passed over.
          clock: seconds, of the deadlines too.

        Raises:
          UserError: the network does not heed S, or was not profiled on this device; fewer images
            may wait than the largest batch has.
        """
        self._check(predictor)
        if most_rows < predictor.batch_sizes[-1]:
            raise UserError(
                f"most_rows is {most_rows}; expected at least {predictor.batch_sizes[-1]}, the "
                "images of the largest batch."
            )
        predictor.warm_up()
        self._predictor, self._clock, self._observe = predictor, clock, observe
        self._options: dict[str, Any] = {
            "policy": policy, "most_rows": most_rows, "margin_s": margin_s,
        }  # fmt: skip
        self._scheduler = self._make_scheduler(predictor)
        self._changed = threading.Condition()
        self._stopping = False
        self._error: Exception | None = None
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
    def alive(self) -> bool:
        """Whether it still answers; a policy that raises ends it."""
        return self._error is None

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
        max_scale: float = 1.0, priority: int = 0, arrival: float | None = None,
    ) -> "concurrent.futures.Future[Answer]":  # fmt: skip
        """Asks for an answer before a time of the engine's clock.

        Args:
          images: that are known to be right, see `pixels.check`; at most `most_images`.
          deadline: when the answer is due.
          min_scale: S is at least this.
          max_scale: S is at most this.
          priority: higher ones are answered first.
          arrival: when it came, where it had to be read first; by default now.

        Returns:
          The answer, or `Shed` where its time ran out while it waited.

        Raises:
          Shed: it is refused at once.
        """
        now = self._clock()
        asked = _Asked(images, concurrent.futures.Future())
        came = now if arrival is None else arrival
        request = Request(len(images), came, deadline, min_scale, max_scale, priority, asked)
        with self._changed:
            try:
                if self._error is not None:
                    raise Failed(f"The engine has failed: {self._error}")
                if self._stopping:
                    raise Shed("stopping", "The server is about to end.", 1.0)
                self._scheduler.admit(request, now)
            except Shed as shed:
                self._tell("shed", (request, shed.reason))
                raise
            self._changed.notify()
        return asked.future

    def handed_over(self, request_end: float) -> None:
        """Says that an answer whose batch ended then is on its way now: plans leave time for it."""
        took_s = max(0.0, self._clock() - request_end)
        with self._changed:
            self._scheduler.handed_over(took_s)

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
            self._scheduler.replace_costs(self._make_scheduler(predictor).costs)
            self._predictor = predictor

    def stop(self) -> None:
        """Takes nothing more, answers what it took, and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        """The thread's work; an error in it leaves nobody waiting."""
        try:
            self._work()
        except Exception as error:
            traceback.print_exc()
            with self._changed:
                self._error = error
                count = len(self._scheduler.waiting)
                left = self._scheduler.waiting.take(range(count))
            for request in left:
                self._fail(request, error)

    def _work(self) -> None:
        free_since = self._clock()
        while True:
            with self._changed:
                while not len(self._scheduler.waiting) and not self._stopping:
                    self._changed.wait()
                    free_since = self._clock()
                now, predictor = self._clock(), self._predictor
                batch, lost = self._scheduler.turn(now)
                retry_s = self._scheduler.retry_after_s(now) if lost else 0.0
                if batch is None and self._stopping and not len(self._scheduler.waiting):
                    self._give_up(lost, retry_s)
                    return
            self._give_up(lost, retry_s)
            if batch is not None:
                free_since = self._answer(batch, predictor, free_since)

    def _give_up(self, lost: list[Request], retry_s: float) -> None:
        for request in lost:
            future = request.payload.future
            if future.set_running_or_notify_cancel():
                self._tell("shed", (request, "expired"))
                future.set_exception(Shed("expired", "Its time ran out as it waited.", retry_s))

    def _answer(self, batch: Batch, predictor: Predictor, free_since: float) -> float:
        """Runs a batch, and hands each request its part; of those who gave up waiting nothing.

        Args:
          batch: to be answered.
          predictor: that answers it.
          free_since: when the thread had nothing else to do but this batch. What it took to hand
            out the last answers and to plan is counted as this batch's, for it is not there for
            requests either.

        Returns:
          When the device was free again.
        """
        kept = [r.payload.future.set_running_or_notify_cancel() for r in batch.requests]
        requests = tuple(itertools.compress(batch.requests, kept))
        start = self._clock()
        if not requests:
            return start
        try:
            rows = [request.rows for request in requests]
            images = np.concatenate([request.payload.images for request in requests])
            scales = np.repeat(batch.scales[kept].astype(np.float32), rows)
            parts = predictor.predict(images, scales).split(rows)
        except Exception as error:  # A device may fail in ways of its own; the engine lives on.
            for request in requests:
                self._fail(request, error)
            return self._clock()
        end = self._clock()
        if len(requests) == len(batch.requests):
            with self._changed:
                self._scheduler.done(batch, end, end - free_since)
        self._tell("batch", batch)
        step = predictor.bundle.meta.step
        for request, part in zip(requests, parts, strict=True):
            answer = Answer(part, start - request.arrival, end - start, step)
            self._tell("late" if end > request.deadline else "answered", (request, answer))
            request.payload.future.set_result(answer)
        return end

    def _fail(self, request: Request, error: Exception) -> None:
        """Tells one request of an error; each gets an exception of its own."""
        future = request.payload.future
        if future.done() or not (future.running() or future.set_running_or_notify_cancel()):
            return
        self._tell("failed", (request, error))
        future.set_exception(Failed(f"The network could not be run: {error}"))

    def _tell(self, event: str, what: Any) -> None:
        if self._observe is None:
            return
        try:
            self._observe(event, what)
        except Exception:
            traceback.print_exc()
