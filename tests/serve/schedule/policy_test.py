"""The parts of a plan: who is served in time, and several requests as one."""

import numpy as np
import pytest

from urnet_jax.serve.schedule import policy


def test_what_part_of_each_is_served_in_time():
    def served(each: list[float], left: list[float], batch_s: float = 0.0) -> list[float]:
        part = policy._served(np.array([each]), np.array([left]), np.array([[batch_s]]))
        return part[0].tolist()

    assert served([8, 1, 8], [10, 12, 17]) == [1, 1, 1]
    assert served([8, 8, 8], [4, 10, 18]) == [0.5, 0.75, 1]
    assert served([8, 8], [-1, 4]) == [0, 0.5]
    assert served([2, 2], [4, 4], 4.0) == [1, 0.5]  # answers are there a second later
    # A deadline that does not ascend gives no time back.
    assert served([8, 1, 8], [10, 2, 12]) == [1, 0, 0.25]


def test_many_that_wait_are_planned_for_several_as_one():
    rng = np.random.default_rng(0)
    rows, deadlines = rng.integers(1, 9, 500).astype(float), rng.uniform(0, 1, 500)
    plan = np.stack([rows, deadlines, np.full(500, 0.0), rng.uniform(0.5, 1, 500)])
    parts = policy._in_parts(plan)
    assert 40 <= parts.shape[1] <= policy.PARTS and (np.diff(parts[1]) > 0).all()
    assert parts[0].sum() == pytest.approx(rows.sum()) and parts[0].max() < rows.sum() / 40
    assert (parts[0] * parts[1]).sum() == pytest.approx((rows * deadlines).sum())
    assert (parts[2] == 0).all() and parts[3].min() > 0.5
    few = plan[:, :40]
    assert (policy._in_parts(few) == few).all()
