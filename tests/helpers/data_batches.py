"""Batches in the tests of data: their config, how they are taken, joined and compared."""

from typing import Any

import numpy as np

from configs import digits


def section(**fields) -> Any:
    data: Any = digits.get_config().data
    data.update(fields)
    return data


def take(batches, count):
    return [next(batches) for _ in range(count)]


def joined(batches, key):
    return np.concatenate([batch[key] for batch in batches])


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for one, other in zip(batches, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
