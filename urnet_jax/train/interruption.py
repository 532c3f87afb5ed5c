"""Being asked to stop: SIGTERM, the preemption notice of a cluster, or Ctrl-C."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_CODES = {"SIGTERM": 75, "SIGINT": 130}
"""Of a run that was asked to stop and saved: 75 asks a scheduler to try again (EX_TEMPFAIL)."""

AskedToStop = Callable[[int], str]
"""f(step): the signal's name once the run is to stop after this step, else an empty string."""


@contextlib.contextmanager
def watched() -> Iterator[AskedToStop]:
    """Watches for SIGTERM and Ctrl-C; a second one acts at once.

    Of several processes any may get a SIGTERM, and all stop after the same step; they must all ask
    at every step.
    """
    if jax.process_count() > 1:
        # JAX picks the first number that no process has asked about: of a notice that came before
        # the first step that is 1, wherever the run goes on.
        asked_times = itertools.count(1)

        def reached(step: int) -> str:
            del step
            found = multihost_utils.reached_preemption_sync_point(next(asked_times))
            return "SIGTERM" if found else ""

        yield reached
        return
    asked, before = [], {}

    def at_once(number: int, frame: Any) -> None:
        del number, frame
        os.write(2, b"\nInterrupted: the same command goes on from the last checkpoint, if any.\n")
        os._exit(EXIT_CODES["SIGINT"])  # An ordinary end may come in the middle of a compilation.

    def remember(number: int, frame: Any) -> None:
        del frame
        restore()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, at_once)
        asked.append(signal.Signals(number).name)
        # Not print: the signal may have come in the middle of another one.
        os.write(2, b"\nStopping after this step and saving; once more stops at once.\n")

    def restore() -> None:
        for name, handler in before.items():
            signal.signal(signal.Signals[name], handler)

    if threading.current_thread() is threading.main_thread():  # Only there Python lets us.
        for name in EXIT_CODES:
            before[name] = signal.signal(signal.Signals[name], remember)
    try:
        yield lambda step: asked[0] if asked else ""
    finally:
        restore()
