"""The bound that knows the future, on cases worked by hand and beside what schedulers reach."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.serving_bound import best_mean
from urnet_jax.runs.profile import Profile
from urnet_jax.serve.schedule.costs import Costs
from urnet_jax.serve.schedule.request import Request
from urnet_jax.serve.schedule.scheduler import Scheduler
from urnet_jax.serve.schedule.simulation import simulate

SCALES, SECONDS, TOP1 = (0.2, 0.5, 1.0), (0.01, 0.02, 0.04), (50.0, 80.0, 90.0)


@pytest.mark.parametrize(
    ("arrivals", "limit_s", "expected"),
    [
        ([0.0], 1.0, 0.9),  # there is time for all
        ([0.0], 0.02, 0.8),
        ([0.0], 0.03, 0.85),  # half-way between two S
        ([0.0], 0.005, 0.25),  # half of the smallest: more than one request can really have
        ([0.0, 0.0], 0.04, 0.8),
        ([0.0, 0.0], 0.06, 0.85),
        ([0.0, 0.0, 0.0, 5.0], 0.03, (3 * 0.5 + 0.85) / 4),
        ([0.0, 0.02], 0.03, (0.8 + 0.85) / 2),  # 0.05 s in all, from 0 to the second's deadline
    ],
)
def test_by_hand(arrivals, limit_s, expected):
    found = best_mean(np.array(arrivals), limit_s, SECONDS, [t / 100 for t in TOP1])
    assert found == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(
    gaps=st.lists(st.floats(0.0, 0.05), min_size=1, max_size=40),
    limit_s=st.floats(0.02, 0.2),
)
def test_no_scheduler_exceeds_it(gaps, limit_s):
    profile = Profile(
        scales=SCALES, top1_percent=TOP1, flops_shares=SCALES, batch_sizes=(1, 4),
        seconds=tuple((s, 3 * s) for s in SECONDS), images=100,
    )  # fmt: skip
    costs, arrivals = Costs(profile), np.cumsum(gaps)
    requests = [Request(1, at, at + limit_s, 0.0, 1.0) for at in arrivals.tolist()]
    found = simulate(requests, Scheduler(costs), lambda batch: batch.expected_s)
    reached = np.where(found.in_time, np.interp(found.scales, SCALES, costs.top1), 0.0).mean()
    per_row = np.min([costs.seconds_per_row(costs.scales, n) for n in (1, 4)], axis=0)
    assert reached <= best_mean(arrivals, limit_s, per_row.tolist(), costs.top1.tolist()) + 1e-6


@pytest.mark.parametrize("load", [1.5, 3.0, 10.0])
def test_ours_comes_near_it_on_a_device_whose_times_vary(load):
    sizes = (1, 4, 16)
    seconds = tuple(tuple(0.001 + 0.05 * s * n for n in sizes) for s in SECONDS)
    costs, rng = Costs(Profile(SCALES, TOP1, SCALES, 100, sizes, seconds)), np.random.default_rng(0)
    each = costs.seconds_per_row(costs.scales)
    arrivals = np.cumsum(rng.exponential(each[-1] / load, int(4 * load / each[-1])))
    requests = [Request(1, at, at + 0.1, 0.0, 1.0) for at in arrivals.tolist()]
    found = simulate(
        requests, Scheduler(costs),
        lambda batch: batch.expected_s / costs.correction * rng.uniform(0.8, 1.2),
    )  # fmt: skip
    reached = np.where(found.in_time, np.interp(found.scales, SCALES, costs.top1), 0.0).mean()
    assert reached > 0.93 * best_mean(arrivals, 0.1, each.tolist(), costs.top1.tolist())
