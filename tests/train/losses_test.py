import jax
import jax.numpy as jnp
import numpy as np
import pytest

from urnet_jax.train import losses


def scale_loss(gates, scale, groups=None):
    return losses.scale_loss(losses.gaps_of(gates.mean(axis=1), scale, groups))


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


def test_the_price_and_the_ascent_of_multipliers_by_hand():
    anchors, multipliers = (0.25, 0.5, 1.0), jnp.array([2.0, -1.0, 0.5])
    scale, gaps = jnp.array([0.26, 0.97, 0.45, 0.25]), jnp.array([0.1, -0.2, 0.2, 0.1])
    anchor = losses.anchor_of(scale, anchors)
    np.testing.assert_array_equal(anchor, [0, 2, 1, 0])
    price = losses.price(gaps, multipliers, anchor)
    assert price == pytest.approx((2 * 0.1 + 0.5 * -0.2 - 1 * 0.2 + 2 * 0.1) / 4)
    risen = losses.ascended(multipliers, gaps, anchor, 0.5)
    np.testing.assert_allclose(risen, [2.05, -0.9, 0.4], rtol=1e-6)


def test_ascent_finds_the_usage_that_is_asked():
    """A share u of openings that costs (1 - u)^2: at u = 0.3 another opening is worth 1.4."""

    def step(state, _):
        logit, multipliers = state
        anchor = jnp.array([0])

        def gaps(logit):
            return jax.nn.sigmoid(logit) - 0.3

        def wants(logit):
            return (1 - jax.nn.sigmoid(logit))[0] ** 2 + losses.price(
                gaps(logit), multipliers, anchor
            )

        logit -= 0.5 * jax.grad(wants)(logit)
        return (logit, losses.ascended(multipliers, gaps(logit), anchor, 0.1)), gaps(logit)

    (_, multipliers), found = jax.lax.scan(step, (jnp.zeros(1), jnp.zeros(1)), length=3000)
    np.testing.assert_allclose(found[-1], 0, atol=1e-3)
    np.testing.assert_allclose(multipliers, 1.4, atol=1e-2)


def test_expected_openings_by_hand():
    # Sigmoids 1/2, 3/4, 0 and 1: of four gates 9/16 is open.
    logits = jnp.array([[0.0, np.log(3.0)], [-100.0, 100.0]])
    value, gradient = jax.value_and_grad(losses.expected_open)(logits)
    assert value == pytest.approx(9 / 16)
    np.testing.assert_allclose(gradient, [[1 / 16, 3 / 64], [0, 0]], atol=1e-7)


def test_the_guard_by_hand():
    soft = jnp.array([[0.2, 1.0], [0.4, 0.0]])
    target = jnp.array([[0.3, 0.5], [0.3, 0.5]])
    np.testing.assert_allclose(losses.guard(soft, target), (0.01 + 0.25 + 0.01 + 0.25) / 4)
    assert losses.guard(soft, target, groups=1) == pytest.approx(0, abs=1e-12)
