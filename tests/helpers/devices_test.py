import os

import jax
import numpy as np
import pytest

from urnet_jax.xla import sharding


def shards_of_a_batch(batch: np.ndarray) -> tuple[int, list[np.ndarray]]:
    placed = sharding.global_batch({"image": batch}, sharding.make_mesh())["image"]
    return os.getpid(), [np.asarray(shard.data) for shard in placed.addressable_shards]


def fail(number: int) -> None:
    assert number == 2, "not this number"


def test_functions_run_on_eight_devices_of_one_other_process(eight_devices):
    batch = np.arange(16).reshape(16, 1)
    process, shards = eight_devices(shards_of_a_batch, batch)
    np.testing.assert_array_equal(shards, np.split(batch, 8))
    assert process == eight_devices(os.getpid) != os.getpid()
    assert len(jax.devices()) == 1


def test_what_fails_there_fails_here(eight_devices):
    with pytest.raises(AssertionError, match="not this number"):
        eight_devices(fail, 1)
    eight_devices(fail, 2)
