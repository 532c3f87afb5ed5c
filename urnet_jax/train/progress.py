"""What a person sees of a phase in training: a bar in a terminal, lines in a log file."""

import math
import sys
import time

import jax
from tqdm import tqdm

from urnet_jax.errors import UserError
from urnet_jax.nets.tasks import TOP1, Measure
from urnet_jax.runs.writers import MetricWriter
from urnet_jax.train.metrics import TrainMetrics

LINE_EVERY_S = 15.0
"""Seconds between lines where there is no terminal to draw a bar on."""


class PhaseProgress:
    """Merges the metrics of training steps, shows and writes them, and never waits for the device.

    A step's metrics are fetched only after a later step was dispatched.
    """

    def __init__(
        self, writer: MetricWriter, phase: str, *, first: int, num_steps: int, every_steps: int,
        batch_size: int, measure: Measure = TOP1,
    ) -> None:  # fmt: skip
        """Progress of a phase of `num_steps` that goes on after its step `first`.

        `measure` is what the metrics' `top1` is the mean of, see `Task.trained`.
        """
        self._writer, self._phase = writer, phase
        self._every_steps, self._batch_size, self._measure = every_steps, batch_size, measure
        self._bar = tqdm(
            total=num_steps, initial=first, desc=phase, unit="step", dynamic_ncols=True,
            disable=jax.process_index() > 0 or not sys.stderr.isatty(),
        )  # fmt: skip
        self._num_steps, self._line_at = num_steps, time.monotonic()
        self._collected: list[TrainMetrics] = []
        self._previous: TrainMetrics | None = None
        self._due: tuple[int, int, list[TrainMetrics], float] | None = None
        self._clock = time.monotonic()

    def add(self, step: int, phase_step: int, metrics: TrainMetrics) -> None:
        """Takes the metrics of a step that was just dispatched."""
        # One step may run while the next is prepared; more would only queue up on the device, and
        # the clock would measure how fast steps are dispatched.
        jax.block_until_ready(self._previous)
        self._previous = metrics
        self._write_due()
        self._bar.update()
        self._collected.append(metrics)
        self._last = step, phase_step
        if phase_step % self._every_steps == 0 or phase_step == self._num_steps:
            self._make_due()

    def pause(self) -> None:
        """Writes all that was added; the time until `resume` is not counted as training.

        A run that goes on from a checkpoint then writes the lines that it would have written.
        """
        self._write_due()
        self._make_due()
        self._write_due()
        self._paused_at = time.monotonic()

    def resume(self) -> None:
        self._clock += time.monotonic() - self._paused_at

    def __enter__(self) -> "PhaseProgress":
        return self

    def __exit__(self, kind: type | None, error: object, traceback: object) -> None:
        """Writes what is left, unless an error ends the phase, and lets go of the bar."""
        try:
            if kind is None:
                self._write_due()
        finally:
            self._bar.close()

    def _check_finite(self, step: int, phase_step: int, metrics: TrainMetrics) -> None:
        for name in ("loss", "gradient_norm", "state_norm"):
            found = getattr(metrics, name)
            value = float(found.compute())
            if not math.isfinite(value):
                raise UserError(
                    f"The {name.replace('_', ' ')} is {value} at step {step}, step {phase_step} of "
                    f"phase {self._phase}: lower {self._phase}.learning_rate or set "
                    f"{self._phase}.clip_norm; the checkpoints are of steps before."
                )

    def _make_due(self) -> None:
        if self._collected:
            now = time.monotonic()
            self._due = (*self._last, self._collected, now - self._clock)
            self._collected, self._clock = [], now

    def _write_due(self) -> None:
        if self._due is None:
            return
        step, phase_step, collected, seconds = self._due
        self._due = None
        host = jax.device_get(collected)
        for n, metrics in enumerate(host, start=1 - len(host)):
            self._check_finite(step + n, phase_step + n, metrics)
        merged = host[0]
        for metrics in host[1:]:
            merged = merged.merge(metrics)
        computed, own = merged.compute().items(), self._measure.name
        values = {name.replace("top1", own): float(value) for name, value in computed}
        values["images_per_s"] = len(host) * self._batch_size / max(seconds, 1e-9)
        self._writer.write("train", step, {"phase": self._phase, **values})
        shown = (
            f"loss {values['loss']:.3f}, {self._measure.title} {100 * values[own]:.1f} %, "
            f"usage {values['usage']:.2f}, {values['images_per_s']:.0f} img/s"
        )
        self._bar.set_postfix_str(shown)
        if self._bar.disable and (
            time.monotonic() - self._line_at > LINE_EVERY_S or phase_step == self._num_steps
        ):
            self._line_at = time.monotonic()
            print(f"{self._phase} {phase_step}/{self._num_steps}: {shown}", flush=True)
