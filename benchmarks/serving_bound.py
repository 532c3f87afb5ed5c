"""What no scheduler can exceed: one that knows every request beforehand, and wastes nothing.

Beside it what ours reaches on simulated time, where batches take what is expected.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.sparse
from jaxtyping import Float64

from benchmarks import serving_load
from benchmarks.results import Row
from urnet_jax.serve.schedule.costs import Costs
from urnet_jax.serve.schedule.request import Request
from urnet_jax.serve.schedule.scheduler import Scheduler
from urnet_jax.serve.schedule.simulation import simulate


def of_record(
    record: Row, costs: Costs, top1: Float64[np.ndarray, " k"], traces: pathlib.Path | None
) -> list[Row]:
    """For each load of a record the most answers, and right ones, in time; and what ours reaches.

    Args:
      record: of `benchmarks/serving.py`.
      costs: of the network; an image takes what it took in the batch size where that is least.
      top1: from 0 to 1, of the images that are sent, at each of `costs.scales`.
      traces: the folder of the traces.
    """
    loads = {
        (of["pattern"], of["load"], of["seed"]): of
        for of in (group["settings"] for group in record["groups"])
    }
    per_row = np.min([costs.seconds_per_row(costs.scales, n) for n in costs.batch_sizes], axis=0)
    found = []
    for (pattern, load, seed), of in loads.items():
        rate, each = load * of["capacity_per_s"], per_row * of["images_per_request"]
        times = serving_load.arrivals(pattern, rate, of["seconds"], seed, traces)
        limit_s = of["deadline_ms"] / 1000
        right = best_mean(times, limit_s, each.tolist(), top1.tolist())
        in_time = best_mean(times, limit_s, each[:1].tolist(), [1.0])
        rows = of["images_per_request"]
        requests = [Request(rows, at, at + limit_s, 0.0, 1.0) for at in times.tolist()]
        ours = simulate(requests, Scheduler(costs), lambda batch: batch.expected_s)
        ours_right = np.where(ours.in_time, np.interp(ours.scales, costs.scales, top1), 0.0).mean()
        found.append({
            "pattern": pattern, "load": load, "seed": seed, "right_percent": 100 * right,
            "in_time_percent": 100 * in_time,
            "ours_simulated_right_percent": float(100 * ours_right),
            "ours_simulated_in_time_percent": 100 * ours.attainment,
        })  # fmt: skip
    return found


def best_mean(
    arrivals: Float64[np.ndarray, " n"], limit_s: float, seconds: Sequence[float],
    values: Sequence[float],
) -> float:  # fmt: skip
    """The highest mean value of n requests, each due so long after it came.

    The device may stop and go on, split a request, and mix two S in one; whatever a real one does,
    it does no better. All requests may take the same time, so that an order by arrival is as good
    as any, and it is a linear program over their times and ends.

    Args:
      arrivals: in seconds, ascending.
      limit_s: from a request's arrival to its deadline.
      seconds: that the device needs for a request, a number for each S.
      values: of an answer in time, for each S; of none it is 0.
    """
    pieces, count = _hull(seconds, values), len(arrivals)
    # Columns: the end of each request, then for each piece of the hull its time in each request.
    worth = np.concatenate([np.zeros(count), *(np.full(count, -slope) for slope, _ in pieces)])
    identity = scipy.sparse.eye_array(count, format="csr")
    spent = scipy.sparse.hstack([identity] * len(pieces))
    before = scipy.sparse.eye_array(count, k=-1, format="csr")
    order = scipy.sparse.hstack([before - identity, spent])  # the one before + its time <= its end
    begin = scipy.sparse.hstack([-identity, spent])  # arrival + its time <= its end
    bounds = [
        *zip(arrivals, arrivals + limit_s, strict=True),
        *((0.0, width) for _, width in pieces for _ in range(count)),
    ]
    found = scipy.optimize.linprog(
        worth, A_ub=scipy.sparse.vstack([order, begin]),
        b_ub=np.concatenate([np.zeros(count), -arrivals]), bounds=bounds, method="highs",
    )  # fmt: skip
    assert found.success, found.message
    return float(-found.fun / count)


def _hull(seconds: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """Slope and width of each piece of the least concave function through 0 above the points."""
    points = sorted(zip(seconds, values, strict=True))
    at, pieces = (0.0, 0.0), []
    while True:
        ahead = [((v - at[1]) / (s - at[0]), s, v) for s, v in points if s > at[0]]
        slope, second, value = max(ahead, default=(0.0, 0.0, 0.0))
        if slope <= 0:
            return pieces
        pieces.append((slope, second - at[0]))
        at = (second, value)
