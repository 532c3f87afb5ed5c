"""What batches are expected to take."""

import numpy as np
import pytest

from helpers.profiles import FLAT, PROFILE, SECONDS
from urnet_jax.errors import UserError
from urnet_jax.runs.profile import Profile
from urnet_jax.serve.schedule.costs import Costs
from urnet_jax.serve.schedule.request import Request
from urnet_jax.serve.schedule.scheduler import Scheduler


def test_what_a_batch_takes():
    costs = Costs(PROFILE)
    one, three = np.array([1.0]), np.array([1.0, 2.0])
    assert float(costs.seconds(one, np.array([1.0]))) == pytest.approx(0.003)
    # Three images in a batch of four: a request of one at S = 0.4, of two at 1, and padding.
    expected = (SECONDS[1][1] + 2 * SECONDS[3][1] + SECONDS[0][1]) / 4
    assert float(costs.seconds(three, np.array([0.4, 1.0]))) == pytest.approx(expected)
    several = costs.seconds(three, np.array([[0.4, 1.0], [1.0, 1.0]]))
    assert several.shape == (2,) and several[0] == pytest.approx(expected)
    assert float(costs.value(np.array(0.55))) == pytest.approx(0.815 + 0.001 * 0.55)
    assert costs.sizes(9).tolist() == [1, 4, 9] and costs.sizes(50).tolist() == [1, 4, 16]


def test_what_a_request_takes_at_least_is_as_measured():
    costs = Costs(PROFILE)
    for correction in (1.0, 3.0):
        costs.correction = correction
        # Three images at S = 0.4 in a batch of four, padded with the smallest S.
        alone_s, rows = costs.least_of(3, 0.4)
        assert alone_s == pytest.approx((3 * SECONDS[1][1] + SECONDS[0][1]) / 4)
        assert rows == pytest.approx(3 * SECONDS[1][-1] / SECONDS[0][-1])
        assert costs.least_of(3, 0.0) == costs.least_of(3, 0.2)
        seconds = float(costs.seconds(np.array([3.0]), np.array([0.4])))
        assert costs.alone(3, 0.4) == pytest.approx(seconds)
        assert costs.least_s(4) == pytest.approx(correction * SECONDS[0][1])


def test_times_follow_what_is_observed_and_sooner_if_it_is_more():
    slow, fast = Costs(PROFILE), Costs(PROFILE)
    for costs, took in ((slow, 2.0), (fast, 0.5)):
        for _ in range(20):
            before = costs.alone(4, 1.0)
            costs.observe(before, took * SECONDS[-1][1])
    assert slow.correction == pytest.approx(2, rel=0.01)
    assert 0.6 < fast.correction < 0.8
    wild = Costs(PROFILE)
    wild.observe(0.001, 1000.0)  # A machine that slept: no reason to despair.
    assert wild.correction == pytest.approx(1.9)
    with pytest.raises(UserError, match="holds one S, and a server chooses among several"):
        Costs(Profile((1.0,), (84.0,), (1.0,), 9, (1,), ((0.1,),)))


def test_what_waits_takes_what_it_takes_on_a_network_that_is_swapped_in():
    scheduler, other = Scheduler(Costs(PROFILE)), Costs(FLAT)
    scheduler.costs.correction = 1.5
    for rows in (1, 8):
        scheduler.admit(Request(rows, 0.0, 1.0, 0.4), 0.0)
    scheduler.replace_costs(other)
    assert other.correction == 1.5 and len(scheduler.waiting) == 2 and scheduler.waiting.rows == 9
    expected = sum(other.least_of(rows, 0.4).rows for rows in (1, 8))
    assert scheduler.waiting.least_rows() == pytest.approx(expected)
