"""When requests come: synthetic patterns, and traces of real services sped up to a load."""

import pathlib

import numpy as np
import pandas as pd
from jaxtyping import Float64

from urnet_jax.errors import UserError

TRACES = {"code": "azure_llm_code.csv", "conv": "azure_llm_conv.csv"}
"""Azure LLM inference, 2023 (CC-BY 4.0, Microsoft), by the name of their pattern."""

PATTERNS = ("steady", "poisson", "gamma8", "step3", "step10", *TRACES)

Times = Float64[np.ndarray, " n"]


def arrivals(
    pattern: str, rate: float, seconds: float, seed: int, traces: pathlib.Path | None = None
) -> Times:
    """When each request is due to be sent, in seconds from the start, ascending.

    Args:
      pattern: `steady` (equal gaps), `poisson`, `gamma8` (gaps whose squared coefficient of
        variation is 8), `step3` and `step10` (Poisson at a third of the rate, or a tenth, which in
        the middle third of the time is the rate), or a trace, a part of which has this mean rate.
      rate: requests in a second: the mean, or of steps the highest.
      seconds: how long.
      seed: of what is drawn; of a trace, which part.
      traces: the folder of the traces.

    Raises:
      UserError: the pattern is not known, or its trace not there.
    """
    rng = np.random.default_rng(seed)
    if pattern in TRACES:
        return _of_trace(pattern, rate, seconds, rng, traces)
    if pattern not in PATTERNS:
        raise UserError(f"--patterns names {pattern!r}; expected some of {', '.join(PATTERNS)}.")
    if pattern.startswith("step"):
        low, third = rate / float(pattern.removeprefix("step")), seconds / 3
        parts = [_poisson(r, third, rng) + k * third for k, r in enumerate((low, rate, low))]
        return np.concatenate(parts)
    if pattern == "poisson":
        return _poisson(rate, seconds, rng)
    if pattern == "steady":
        return np.arange(0, seconds, 1 / rate)
    gaps = rng.gamma(1 / 8, 8 / rate, int(2 * rate * seconds) + 1000)
    times = np.cumsum(gaps)
    return times[times < seconds]


def _poisson(rate: float, seconds: float, rng: np.random.Generator) -> Times:
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))


def _of_trace(
    pattern: str, rate: float, seconds: float, rng: np.random.Generator,
    traces: pathlib.Path | None,
) -> Times:  # fmt: skip
    """A stretch of a trace, as many requests as are due, its gaps scaled to the time."""
    path = (traces or pathlib.Path()) / TRACES[pattern]
    if traces is None or not path.exists():
        raise UserError(f"The pattern {pattern!r} needs {path}: name its folder with --traces.")
    stamps = pd.to_datetime(pd.read_csv(path)["TIMESTAMP"])
    times = np.sort((stamps - stamps.min()).dt.total_seconds().to_numpy(np.float64))
    count = min(len(times), round(rate * seconds))
    first = int(rng.integers(0, len(times) - count + 1))
    part = times[first : first + count] - times[first]
    return part * (seconds / max(part[-1], 1e-9))
