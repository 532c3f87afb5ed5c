"""The BatchNorm statistics of averaged weights, on the digits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from helpers.pretrained_networks import assert_identical
from helpers.steps_runs import STEPS_PER_EPOCH, named, small_config, train
from urnet_jax.data.sources import open_split
from urnet_jax.train import averaging
from urnet_jax.train.state import Averaged, TrainState

MESH = Mesh(jax.devices()[:1], ("data",))


def own(state: TrainState, config: Any, phase: str) -> TrainState:
    split = open_split(config.data, "train")
    return averaging.with_own_statistics(state, config, phase, STEPS_PER_EPOCH, split, MESH)


@pytest.fixture(scope="module")
def averaged() -> tuple[Any, TrainState, TrainState]:
    """A config, the state after a few steps, and the same with statistics of its average."""
    config = small_config(pretrain__ema_decay=0.9, data__augment="none")
    state = train(config, "pretrain").states[-1]
    return config, state, own(state, config, "pretrain")


def test_they_are_those_of_the_averaged_weights_over_the_training_images(averaged):
    config, _, after = averaged
    split = open_split(config.data, "train")
    pixels = (jnp.asarray(split.images, jnp.float32) / 255 - 0.3054) / 0.376
    kernel = after.ema_params.params["conv1"]["kernel"]
    made = jax.lax.conv_general_dilated(
        pixels, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean, var = made.mean(axis=(0, 1, 2)), made.var(axis=(0, 1, 2))
    stats = after.ema_params.batch_stats["bn1"]
    # Forty batches of 64, each with the weight of a few: within some hundredths of a deviation.
    assert np.abs((stats["mean"] - mean) / np.sqrt(var)).max() < 0.05
    np.testing.assert_allclose(stats["var"], var, rtol=0.1)


def test_nothing_else_changes_and_they_forget_what_was_measured_before(averaged):
    config, before, after = averaged
    for name in ("step", "params", "batch_stats", "opt_state"):
        assert getattr(after, name) is getattr(before, name)
    assert_identical(after.ema_params.params, before.ema_params.params)
    wild = jax.tree.map(lambda x: x + 100, before.ema_params.batch_stats)
    other = dataclasses.replace(before, ema_params=before.ema_params._replace(batch_stats=wild))
    again: Any = own(other, config, "pretrain")
    assert_identical(again.ema_params.batch_stats, after.ema_params.batch_stats)


def test_in_the_phase_gates_the_networks_own_statistics_stay(averaged):
    config = small_config(gates__ema_decay=0.9)
    state = train(config, "gates").states[-1]
    assert isinstance(state.ema_params, Averaged)
    after: Any = own(state, config, "gates")
    found, begun = named(after.ema_params.batch_stats), named(state.batch_stats)
    for path, value in begun.items():
        np.testing.assert_array_equal(found[path], value)


def test_a_state_without_an_average_is_left_alone():
    config = small_config()
    state = train(config, "pretrain").states[-1]
    assert own(state, config, "pretrain") is state
