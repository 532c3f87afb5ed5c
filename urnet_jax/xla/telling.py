"""What a person is told while something is compiled for long."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

SLOW_COMPILATION_S = 3.0
"""A compilation that takes longer is spoken of."""


def say(text: str) -> None:
    """Prints a line, above the bar where there is one; a log file has it at once."""
    with tqdm.external_write_mode():
        print(text, flush=True)


def telling(
    step: Callable[..., Any], what: str, slow_s: float = SLOW_COMPILATION_S
) -> Callable[..., Any]:
    """`step`, which says so where its first call, in which JAX compiles it, takes long."""
    is_first = True

    def told(*arguments: Any, **named: Any) -> Any:
        nonlocal is_first
        if not is_first:
            return step(*arguments, **named)
        is_first = False
        with compiling(what, slow_s):
            return step(*arguments, **named)

    return told


@contextlib.contextmanager
def compiling(what: str, slow_s: float = SLOW_COMPILATION_S) -> Iterator[None]:
    """Says that `what` is compiled once that has taken `slow_s`, and in the end how long it took.

    Nothing is printed after the end.
    """
    started, said = time.monotonic(), threading.Event()

    def speak() -> None:
        said.set()
        say(f"Compiling {what} (a minute or more for deep networks) ...")

    timer = threading.Timer(slow_s, speak)
    timer.daemon = True  # Nothing waits for it where the process ends in between.
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
    if said.is_set():
        say(f"Compiled {what} in {time.monotonic() - started:.0f} s.")
