"""How the benchmarks measure, and what they record of the machine that they ran on."""

import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Else JAX takes most of a GPU's memory, and PyTorch is to run beside it in the same process.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
from absl import flags

from urnet_jax.errors import UserError
from urnet_jax.xla.compilation import compiler_options

SHORT_S = 0.02
"""A case that takes less is called several times a round."""

MOST_CALLS = 20
"""Timed calls of one case in one round, at most."""

LONG_S = 1.0
"""A case that takes longer is warm after one call, and need not be called untimed in its turn."""


def interleaved_times_ms(
    cases: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    seed: int = 0,
    after_round: Callable[[], Any] = lambda: None,
) -> dict[str, np.ndarray]:
    """Times cases in turn, so that a machine that slows down slows all of them alike.

    Every round calls every case, in an order drawn anew. A first round, not timed, warms up. Unless
    a call is long, the first one of a turn is not timed either: the case before it has left its
    own data in the caches, and possibly threads that still spin.

    Args:
      cases: by name, what to time; a call has to return only when its result is there.
      repeats: timed rounds.
      seed: of the orders.
      after_round: called after every round, the first included.

    Returns:
      Milliseconds of a call, by case, one per round: the median of the round's calls.
    """
    calls, long = {}, {}
    for name, call in cases.items():
        took = seconds(call)
        took = took if took > LONG_S else seconds(call)
        calls[name], long[name] = int(np.clip(SHORT_S / took, 1, MOST_CALLS)), took > LONG_S
    after_round()
    times: dict[str, list[float]] = {name: [] for name in cases}
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        for name in rng.permutation(list(cases)):
            if not long[name]:
                cases[name]()
            timed = [seconds(cases[name]) for _ in range(calls[name])]
            times[name].append(1e3 * float(np.median(timed)))
        after_round()
    return {name: np.array(values) for name, values in times.items()}


def seconds(call: Callable[[], Any]) -> float:
    """Runs `call` once, and says how long that took."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class OtherProcesses:
    """What other processes take of the CPU: where it is much, times are not worth keeping.

    PyTorch suffers most: its threads wait for each other in turns that a third process delays.
    """

    def __init__(self) -> None:
        self._before = _cpu_seconds()

    def busy_share(self) -> float | None:
        """Their share of all cores' time since this object was made; None where it is unknown."""
        if self._before is None or (now := _cpu_seconds()) is None:
            return None
        everyone, idle, own = (b - a for a, b in zip(self._before, now, strict=True))
        return round(max(0.0, everyone - own) / max(everyone + idle, 1e-9), 3)


def _cpu_seconds() -> tuple[float, float, float] | None:
    """CPU seconds, busy and idle, of all processes, and those of this one."""
    stat = pathlib.Path("/proc/stat")
    if not stat.exists():
        return None
    ticks = [int(field) for field in stat.read_text().splitlines()[0].split()[1:9]]
    idle, second = ticks[3] + ticks[4], os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - idle) / second, idle / second, time.process_time()


def compile_timed(function: Callable, *args: Any, **jit: Any) -> tuple[Callable, float]:
    """The function, compiled for these arguments, and the seconds that tracing and compiling took.

    The seconds mean something only under `without_compilation_cache`. `jit` is passed to `jax.jit`.
    """
    start = time.perf_counter()
    # JAX remembers what it traced by the function, so that every measurement needs a new one.
    fresh = jax.jit(lambda *args: function(*args), compiler_options=compiler_options(), **jit)
    compiled = fresh.lower(*args).compile()
    return compiled, time.perf_counter() - start


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """JAX compiles what is asked for, whatever an earlier process left on the disk."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def threads() -> int:
    """CPU threads that JAX uses, and that PyTorch is to use: one for every core it may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_flags(values: flags.FlagValues, argv: list[str], doc: str) -> None:
    """Reads the command line into `values`, or prints `doc` where help is asked for.

    Raises:
      UserError: an argument is unknown or not of its flag's kind.
    """
    if {"--help", "-help", "-h", "-?"} & set(argv):
        print(doc.strip())
        sys.exit(0)
    try:
        rest = values(argv)
    except flags.Error as error:
        raise UserError(f"{error}.") from error
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; write every option as --name=value.")
