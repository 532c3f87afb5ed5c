import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from urnet_jax.xla.fusion import add_relu

LAYOUT = ("NHWC", "HWIO", "NHWC")


def plain(a, b):
    return jnp.maximum(a + b, 0)


def residual_network(x, kernels, merge):
    """A chain of residual blocks of one convolution each."""
    for kernel in kernels:
        scaled = jnp.tanh(jnp.float32(0.5)) * lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT
        )
        x = merge(x, scaled)
    return jnp.sum(x)


def operands(depth):
    rng = np.random.default_rng(depth)
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 4)), jnp.float32)
    return x, jnp.asarray(0.2 * rng.normal(size=(depth, 3, 3, 4, 4)), jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradient_are_those_of_relu(dtype):
    # With exact zeros: as jax.nn.relu has it, the gradient there is 0.
    a = jnp.array([[-2.0, -1.0, 0.0, 1.0], [3.0, 0.5, -0.5, 0.0]], dtype)
    b = jnp.array([[1.0, 1.0, 0.0, 1.0], [-4.0, 0.5, 0.5, 0.5]], dtype)
    found = jax.jit(jax.vjp, static_argnums=0)(add_relu, a, b)
    expected, of_expected = jax.vjp(lambda a, b: jax.nn.relu(a + b), a, b)
    assert found[0].dtype == dtype
    np.testing.assert_array_equal(found[0], expected)
    for x, y in zip(found[1](jnp.ones_like(a)), of_expected(jnp.ones_like(a)), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(add_relu(a, b), expected)


def test_gradients_of_a_deep_network_are_the_plain_ones():
    gradients = jax.jit(
        jax.value_and_grad(residual_network, argnums=(0, 1)), static_argnames="merge"
    )
    found, expected = (gradients(*operands(6), merge=merge) for merge in (add_relu, plain))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_the_work_of_a_training_step_grows_linearly_with_depth():
    """What XLA counts as read and written, so that what is computed again counts again."""

    def bytes_accessed(depth, merge):
        gradient = jax.grad(lambda k, x: residual_network(x, k, merge))
        x, kernels = operands(depth)
        program = jax.jit(gradient).lower(list(kernels), x).compile()
        cost = program.cost_analysis()
        assert cost is not None
        return cost["bytes accessed"]

    def growth(merge):
        """The cost of the last blocks as a multiple of that of as many earlier ones."""
        few, more, most = (bytes_accessed(depth, merge) for depth in (8, 16, 24))
        return (most - more) / (more - few)

    if jax.default_backend() == "cpu":
        assert growth(plain) > 1.2  # else XLA has learned better, and `fusion` can go
    assert growth(add_relu) == pytest.approx(1, abs=0.05)
