"""The predicted step on slices, against sums done by hand."""

import math

import pytest

from benchmarks import step_model
from benchmarks.step_model import CHIPS, DCN_HOP_S, HOP_S, LAUNCH_S, UTILIZATION

COUNTED = {"flops": 1e12, "summed_bytes": 100e6, "collectives": 10}
V5E = CHIPS["v5e"]


def test_one_chip_only_computes():
    step = step_model.predict(V5E, 1, **COUNTED)
    assert (step.sums_s, step.latency_s, step.input_s) == (0, 0, 0)
    assert step.seconds == step.compute_s == pytest.approx(1e12 / (UTILIZATION * 197e12))
    assert step.efficiency == 1


def test_a_whole_slice_is_a_torus_and_a_part_of_it_is_not():
    whole, part = (step_model.predict(V5E, n, **COUNTED) for n in (256, 64))
    assert whole.sums_s == pytest.approx(2 * 255 / 256 * 100e6 / 200e9)
    assert part.sums_s == pytest.approx(2 * 2 * 63 / 64 * 100e6 / 200e9)
    assert whole.latency_s == pytest.approx(10 * (LAUNCH_S + HOP_S * 2 * (15 + 15)))
    assert part.latency_s == pytest.approx(10 * (LAUNCH_S + HOP_S * 2 * (7 + 7)))
    assert part.with_latency(2).latency_s == 2 * part.latency_s


def test_between_slices_each_chip_exchanges_its_part():
    one, two = (step_model.predict(V5E, n, **COUNTED) for n in (256, 512))
    between = 2 * 1 / 2 * 100e6 / 256 / V5E.dcn_bytes_per_s
    assert two.sums_s - one.sums_s == pytest.approx(between)
    assert two.latency_s - one.latency_s == pytest.approx(10 * DCN_HOP_S * 2)


def test_slow_input_holds_a_step_up():
    cores = V5E.cores_per_host / V5E.chips_per_host
    step = step_model.predict(V5E, 8, **COUNTED, images=64, images_per_s_per_core=10)
    assert step.input_s == step.seconds == pytest.approx(64 / (10 * cores))
    assert step.efficiency == pytest.approx(step.compute_s / step.input_s)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("chips", [1, 2, 8, 16, 32, 256, 1024])
def test_a_torus_holds_its_chips(chips, dimensions):
    sides = step_model._sides(chips, dimensions)
    assert len(sides) == dimensions and math.prod(sides) == chips
    assert max(sides) <= 2 * min(sides)
