"""Which requests are answered, and at what S, on simulated time."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.profiles import FLAT, PROFILE, SCALES, SECONDS, SIZES, TOP1
from urnet_jax.runs.profile import Profile
from urnet_jax.serve.schedule.costs import Costs
from urnet_jax.serve.schedule.request import Batch, Request, Shed
from urnet_jax.serve.schedule.scheduler import Scheduler
from urnet_jax.serve.schedule.simulation import Outcome, simulate

CAPACITY = 16 / SECONDS[-1][-1]
"""Requests of one image in a second, at S = 1: 485; at S = 0.2: 2,162."""


def exactly(batch: Batch) -> float:
    """A device that takes what is expected."""
    return batch.expected_s


def poisson(rate: float, seconds: float, deadline_s: float = 0.1, **fields: Any) -> list[Request]:
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    return [Request(1, at, at + deadline_s, **fields) for at in arrivals.tolist()]


def served(requests: list[Request], **options: Any) -> Outcome:
    return simulate(requests, Scheduler(Costs(PROFILE), **options), exactly)


@pytest.mark.parametrize("top1", [TOP1, (90.0, 100.0, 100.0, 100.0), (90.0, 84.1, 84.0, 84.0)])
def test_with_time_to_spare_all_run_whole(top1):
    costs = Costs(dataclasses.replace(PROFILE, top1_percent=top1))
    found = simulate(poisson(0.5 * CAPACITY, 5), Scheduler(costs), exactly)
    assert found.attainment == 1 and (found.scales == 1).all()


@pytest.mark.parametrize("deadline_s", [0.02, 0.5, 2.0])
def test_under_load_all_are_in_time_whatever_the_deadline(deadline_s):
    found = served(poisson(3 * CAPACITY, 4, deadline_s))
    assert found.attainment > (0.95 if deadline_s < 0.1 else 0.99) and found.mean_scale < 0.5
    assert "full" not in found.reasons


def test_a_lone_request_to_a_slow_network_runs_whole():
    seconds = tuple(tuple(0.1 + 0.4 * s * n for n in SIZES) for s in SCALES)
    profile = dataclasses.replace(PROFILE, seconds=seconds)
    requests = [Request(1, at, at + 2.0) for at in np.arange(0, 60, 20.0).tolist()]
    found = simulate(requests, Scheduler(Costs(profile)), exactly)
    assert found.attainment == 1 and (found.scales == 1).all()


def test_a_larger_batch_size_never_hurts():
    def attained(sizes: tuple[int, ...]) -> float:
        seconds = tuple(tuple(0.001 + 0.0005 * s * n for n in sizes) for s in SCALES)
        profile = Profile(SCALES, TOP1, SCALES, 100, sizes, seconds)
        requests = poisson(1500, 3, 0.02)
        return simulate(requests, Scheduler(Costs(profile)), exactly).attainment

    assert attained((1, 4, 8, 16, 32, 64, 128, 256)) >= attained((1, 4, 8)) - 0.01


def test_a_few_slow_batches_do_not_close_it_for_good():
    requests = [Request(1, at, at + 0.02) for at in np.arange(0, 20, 0.5).tolist()]
    turns = iter(range(1000))
    scheduler = Scheduler(Costs(PROFILE))
    found = simulate(
        requests, scheduler,
        lambda batch: batch.expected_s * (6 if 5 <= next(turns) < 12 else 1),
    )  # fmt: skip
    late = np.array([request.arrival for request in requests]) > 10
    assert found.in_time[late].all()


@pytest.mark.parametrize(("load", "least_scale"), [(1.5, 0.55), (3.0, 0.26)])
def test_under_load_s_goes_down_and_all_are_in_time(load, least_scale):
    found = served(poisson(load * CAPACITY, 5))
    assert found.attainment > 0.995
    assert least_scale < found.mean_scale < 1 / load + 0.1
    whole = served(poisson(load * CAPACITY, 5, min_scale=1.0))
    assert whole.attainment < 1.05 / load


def test_beyond_the_smallest_s_some_are_refused_and_the_others_in_time():
    found = served(poisson(10 * CAPACITY, 3))
    capacity = 16 / SECONDS[0][-1]
    assert found.attainment == pytest.approx(capacity / (10 * CAPACITY), rel=0.1)
    answered = ~np.isnan(found.finished)
    assert (found.finished[answered] <= found.deadlines[answered]).all()
    assert set(found.reasons) <= {"", "late", "expired"}
    assert found.reasons.count("late") > 0.9 * (len(answered) - answered.sum())


def test_after_a_surge_it_is_as_before():
    calm = [Request(1, at, at + 0.1) for at in np.arange(0, 3, 0.01).tolist()]
    surge = [Request(1, at, at + 0.1) for at in np.arange(1, 1.3, 0.0005).tolist()]
    requests = sorted(calm + surge, key=lambda request: request.arrival)
    found = served(requests)
    arrivals = np.array([request.arrival for request in requests])
    assert (found.scales[arrivals < 1] == 1).all()
    assert np.nanmean(found.scales[(arrivals > 1.1) & (arrivals < 1.3)]) < 0.5
    # What is expected to come looks back over one second.
    assert (found.scales[arrivals > 2.4] == 1).all()


def test_bounds_of_a_request_hold_whatever_the_load():
    requests = poisson(3 * CAPACITY, 2)
    for n, request in enumerate(requests):
        request.min_scale, request.max_scale = ((0.0, 1.0), (0.7, 1.0), (0.0, 0.3))[n % 3]
    found = served(requests)
    for n, (low, high) in enumerate(((0.2, 1.0), (0.7, 1.0), (0.2, 0.3))):
        scales = found.scales[n::3]
        scales = scales[~np.isnan(scales)]
        assert len(scales) > 100 and scales.min() >= low and scales.max() <= high + 1e-9


def test_slow_hand_overs_do_not_close_it_for_good():
    scheduler = Scheduler(Costs(PROFILE))
    for _ in range(30):
        scheduler.handed_over(9.0)
    for now in np.arange(0, 0.1, 0.01).tolist():
        with pytest.raises(Shed) as shed:
            scheduler.admit(Request(1, now, now + 0.05), now)
        assert shed.value.reason == "late" and shed.value.retry_after_s > 0
    scheduler.admit(Request(1, 1.5, 1.55), 1.5)


def test_the_urgent_and_the_important_come_first():
    scheduler = Scheduler(Costs(PROFILE))
    late, soon = Request(10, 0.0, 9.0), Request(10, 0.0, 1.0)
    important = Request(10, 0.0, 9.5, priority=1)
    for request in (late, soon, important):
        scheduler.admit(request, 0.0)
    order = [scheduler.turn(0.01 * k)[0] for k in range(3)]
    assert [batch.requests for batch in order if batch] == [(important,), (soon,), (late,)]


def test_what_cannot_be_answered_in_time_is_refused_and_says_when_to_come_back():
    scheduler = Scheduler(Costs(PROFILE), margin_s=0.0)
    with pytest.raises(Shed, match="is due within 1 ms, and takes 7.4 ms at least") as shed:
        scheduler.admit(Request(16, 0.0, 0.001), 0.0)
    assert (shed.value.reason, shed.value.retry_after_s) == ("impossible", 0.0)
    assert not len(scheduler.waiting)
    scheduler.admit(Request(16, 0.0, 0.008), 0.0)
    with pytest.raises(Shed, match="cannot be answered before its deadline") as shed:
        scheduler.admit(Request(16, 0.0, 0.010), 0.0)
    assert shed.value.reason == "late"
    assert shed.value.retry_after_s == pytest.approx(2 * SECONDS[0][2] - 0.010)
    small = Scheduler(Costs(PROFILE), most_rows=20)
    small.admit(Request(16, 0.0, 5.0), 0.0)
    with pytest.raises(Shed, match="16 images wait already, of 20 at most") as shed:
        small.admit(Request(16, 0.0, 5.0), 0.0)
    assert shed.value.reason == "full"
    assert shed.value.retry_after_s == pytest.approx(SECONDS[0][2])


def test_what_became_too_late_is_given_up_and_not_begun():
    scheduler = Scheduler(Costs(PROFILE))
    request, other = Request(1, 0.0, 0.05), Request(1, 0.0, 1.0)
    scheduler.admit(request, 0.0)
    scheduler.admit(other, 0.0)
    batch, lost = scheduler.turn(0.0499)
    assert lost == [request] and batch is not None and batch.requests == (other,)
    assert scheduler.turn(0.06) == (None, [])


def test_time_is_left_for_handing_answers_over():
    scheduler = Scheduler(Costs(PROFILE), margin_s=0.002)
    for _ in range(30):
        scheduler.handed_over(0.02)
    assert scheduler.margin_s == pytest.approx(0.02, rel=0.01)
    scheduler.handed_over(50.0)  # A client that sleeps takes no more than its share.
    assert scheduler.margin_s < 0.05
    for _ in range(300):
        scheduler.handed_over(0.0)
    assert scheduler.margin_s == 0.002


class Whole:
    """A policy that takes all there are, at S = 1, however late that is."""

    def choose(self, requests, now, costs, outlook):
        del now, costs, outlook
        return len(requests), np.ones(len(requests))


class Full:
    """A full batch at one S, whatever the deadlines, but for the first requests."""

    def __init__(self, scale: float, first: tuple[float, ...] = ()) -> None:
        self._scale, self._first = scale, first

    def choose(self, requests, now, costs, outlook):
        ends = np.cumsum([request.rows for request in requests])
        count = max(1, int(np.searchsorted(ends, 16, side="right")))
        scales = np.full(count, self._scale)
        scales[: len(self._first)] = self._first[:count]
        return count, scales


def test_a_full_batch_takes_the_next_for_those_it_would_have_late():
    # Sixteen at S = 0.4 take 13.8 ms: six of the first are late in that batch, those behind not.
    scheduler = Scheduler(Costs(PROFILE), policy=Full(0.4), margin_s=0.0)
    for deadline in [0.012] * 6 + [0.1] * 20:
        scheduler.admit(Request(1, 0.0, deadline, max_scale=0.5), 0.0)
    batch, lost = scheduler.turn(0.0)
    assert batch is not None and len(batch.requests) == 16 and len(lost) == 6
    assert {r.deadline for r in batch.requests} == {0.1}
    assert batch.scales == pytest.approx(np.full(16, 0.4))
    assert batch.expected_s == pytest.approx(SECONDS[1][-1])


def test_what_a_policy_would_have_late_is_not_begun():
    scheduler = Scheduler(Costs(PROFILE), policy=Whole())
    soon, later = Request(8, 0.0, 0.02), Request(8, 0.0, 1.0)
    scheduler.admit(soon, 0.0)
    scheduler.admit(later, 0.0)
    batch, lost = scheduler.turn(0.0)
    assert lost == [soon] and batch is not None and batch.requests == (later,)
    assert batch.expected_s == pytest.approx(scheduler.costs.alone(8, 1.0))


def test_a_batch_that_gets_smaller_is_not_begun_late():
    """Alone, an image has no part in the time of others: what was in time may be late then."""
    scheduler = Scheduler(Costs(FLAT), policy=Full(1.0, (0.2, 0.2, 0.2)), margin_s=0.0)
    for deadline in (0.003, 0.003, 0.003, 0.006):
        scheduler.admit(Request(1, 0.0, deadline), 0.0)
    batch, lost = scheduler.turn(0.0)
    assert len(lost) == 3 and batch is not None and batch.expected_s <= 0.006


def test_what_takes_the_room_of_late_requests_keeps_to_its_bounds_and_makes_nobody_late():
    scheduler = Scheduler(Costs(PROFILE), policy=Full(0.4), margin_s=0.0)
    for rows, deadline, low, high in (
        (8, 0.012, 0.0, 1.0), (8, 0.014, 0.0, 1.0), (2, 0.1, 0.5, 1.0), (3, 0.1, 0.0, 0.3),
        (4, 0.1, 0.0, 1.0), (2, 0.1, 0.0, 1.0),
    ):  # fmt: skip
        scheduler.admit(Request(rows, 0.0, deadline, low, high), 0.0)
    batch, lost = scheduler.turn(0.0)
    assert batch is not None and [request.deadline for request in lost] == [0.012]
    assert [request.rows for request in batch.requests] == [8, 3, 4]
    assert batch.scales == pytest.approx(np.array([0.4, 0.3, 0.4]))
    assert batch.expected_s <= 0.014 and len(scheduler.waiting) == 2


requests_of = st.lists(
    st.builds(
        lambda rows, gap, allowed, low, width, priority: (rows, gap, allowed, low, width, priority),
        st.integers(1, 16), st.floats(0, 0.02), st.floats(0.001, 0.2), st.floats(0, 1),
        st.floats(0, 1), st.integers(0, 2),
    ),
    min_size=1, max_size=60,
)  # fmt: skip


@settings(max_examples=60)
@given(st.sampled_from([PROFILE, FLAT]), requests_of, st.integers(16, 200), st.floats(0.6, 1.7))
def test_none_is_lost_or_answered_late_by_design(profile, drawn, most_rows, speed):
    requests, at = [], 0.0
    for rows, gap, allowed, low, width, priority in drawn:
        at += gap
        high = min(1.0, low + width)
        requests.append(Request(rows, at, at + allowed, low, high, priority))
    scheduler = Scheduler(Costs(profile), most_rows=most_rows)
    batches: list[Batch] = []

    def device(batch: Batch) -> float:
        batches.append(batch)
        assert batch.rows <= 16 and scheduler.waiting.rows <= most_rows
        return batch.expected_s * speed

    found = simulate(requests, scheduler, device)
    answered = [request for batch in batches for request in batch.requests]
    assert len(answered) == len(set(map(id, answered)))
    assert len(answered) + sum(bool(reason) for reason in found.reasons) == len(requests)
    assert np.isnan(found.finished).tolist() == [bool(reason) for reason in found.reasons]
    for batch in batches:
        for request, scale in zip(batch.requests, batch.scales, strict=True):
            least = min(max(request.min_scale, 0.2), request.max_scale)
            assert least - 1e-9 <= scale <= request.max_scale + 1e-9
    if speed <= 1:
        assert found.in_time[~np.isnan(found.finished)].all()
    assert not len(scheduler.waiting) and scheduler.waiting.rows == 0


def test_a_request_says_what_it_is():
    fields = {field.name for field in dataclasses.fields(Request)}
    assert fields == {
        "rows", "arrival", "deadline", "min_scale", "max_scale", "priority", "payload",
    }  # fmt: skip
