import jax
import jax.numpy as jnp
import numpy as np
import pytest

from urnet_jax.train.losses import scale_loss

GATES = jnp.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]])
SCALE = jnp.array([0.5, 0.75])


def test_scale_loss_per_sample_by_hand():
    # Usage 3/4 and 1/4; errors 3/4 - 1/2 = 1/4 and 1/4 - 3/4 = -1/2.
    # Loss (1/16 + 1/4) / 2 = 5/32. Gradient for gate n of sample b, of B = 2 samples and N = 4
    # gates: 2 * error / (B * N) = error / 4: 1/16 and -1/8.
    loss, gradient = jax.value_and_grad(scale_loss)(GATES, SCALE)
    assert loss == 5 / 32
    np.testing.assert_array_equal(gradient, [[1 / 16] * 4, [-1 / 8] * 4])


def test_scale_loss_on_the_batch_mean_by_hand():
    # Usage of the batch 1/2, asked for 5/8: error -1/8, loss 1/64. Gradient for every gate:
    # 2 * error / (B * N) = -1/32.
    loss, gradient = jax.value_and_grad(scale_loss)(GATES, SCALE, 1)
    assert loss == 1 / 64
    np.testing.assert_array_equal(gradient, np.full((2, 4), -1 / 32))


def test_on_the_batch_mean_samples_share_a_budget():
    gates, scale = jnp.array([[1.0, 1.0], [0.0, 0.0]]), jnp.array([0.5, 0.5])
    assert scale_loss(gates, scale, groups=1) == 0
    assert scale_loss(gates, scale) == 0.25


def test_scale_loss_of_groups_by_hand():
    # Usage 1, 0 | 1, 1; the first group's mean is 1/2, as asked, the second's 1 where 3/4 is asked.
    gates = jnp.array([[1.0], [0.0], [1.0], [1.0]])
    assert scale_loss(gates, jnp.array([0.5, 0.5, 0.75, 0.75]), groups=2) == (0 + 1 / 16) / 2


@pytest.mark.parametrize("groups", [None, 1, 2])
def test_usage_as_asked_costs_nothing(groups):
    assert scale_loss(GATES, GATES.mean(axis=1), groups) == 0
