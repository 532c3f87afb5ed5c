import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from urnet_jax.xla.batch_norm import normalize, over_batch, over_positions

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (5, 4, 4, 16), (3, 8, 2, 1)]


def features(shape, dtype=jnp.float32, mean=0.5):
    rng = np.random.default_rng(sum(shape))
    return jnp.asarray(rng.normal(mean, 2.0, shape), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_those_of_numpy(shape, dtype):
    x = features(shape, dtype)
    exact = np.asarray(x, np.float64)
    for found, expected in (
        (over_positions(x), exact.sum(axis=(1, 2))),
        (over_batch(x), exact.sum(axis=(0, 1, 2))),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_it_is_flaxs_batch_norm_with_its_gradients(shape):
    x, channels = features(shape), shape[-1]
    scale, bias = features((channels,), mean=1.0), features((channels,))
    weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(shape)

    def ours(x, scale, bias):
        out, *stats = normalize(x, scale, bias, 1e-5)
        return jnp.sum(out * weights), (out, *stats)

    def flaxs(x, scale, bias):
        layer = nnx.BatchNorm(channels, momentum=0.0, epsilon=1e-5, rngs=nnx.Rngs(0))
        nnx.update(layer, {"scale": scale, "bias": bias})
        out = layer(x, use_running_average=False)
        return jnp.sum(out * weights), (out, layer.mean[...], layer.var[...])

    found, expected = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(x, scale, bias)
        for f in (ours, flaxs)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_a_weight_for_each_sample_is_a_multiplication():
    x = features((4, 3, 2, 5))
    scale, bias, weight = features((5,), mean=1.0), features((5,)), jnp.array([0.0, 1.0, 0.5, -2.0])
    weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def within(x, scale, bias, weight):
        out, *stats = normalize(x, scale, bias, 1e-5, weight)
        return jnp.sum(out * weights), (out, *stats)

    def after(x, scale, bias, weight):
        out, *stats = normalize(x, scale, bias, 1e-5)
        out = weight[:, None, None, None] * out
        return jnp.sum(out * weights), (out, *stats)

    found, expected = (
        jax.value_and_grad(f, argnums=(0, 1, 2, 3), has_aux=True)(x, scale, bias, weight)
        for f in (within, after)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_the_numeric_one():
    x, scale, bias = features((3, 2, 2, 2)), features((2,)), features((2,))
    weight = jnp.array([0.5, 1.0, 2.0])
    weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def f(*arrays):
        x, scale, bias, weight = map(jnp.asarray, arrays)
        return jnp.sum(normalize(x, scale, bias, 1e-3, weight)[0] * weights)

    check_grads(f, (x, scale, bias, weight), order=1, modes=["rev"], rtol=0.02, eps=1e-2)


def test_statistics_have_no_gradient():
    x = features((3, 2, 2, 2))
    of_stats = jax.grad(
        lambda x: sum(s.sum() for s in normalize(x, jnp.ones(2), jnp.ones(2), 1e-5)[1:])
    )
    assert not of_stats(x).any()


def test_bfloat16_is_normalised_in_float32():
    x = features((16, 8, 8, 4), jnp.bfloat16, mean=30.0)
    out, mean, var = normalize(x, jnp.ones(4), jnp.zeros(4), 1e-5)
    exact = np.asarray(x, np.float64)
    assert out.dtype == jnp.bfloat16 and mean.dtype == var.dtype == jnp.float32
    np.testing.assert_allclose(mean, exact.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(var, exact.var(axis=(0, 1, 2)), rtol=1e-3)
    normal = (exact - exact.mean(axis=(0, 1, 2))) / exact.std(axis=(0, 1, 2))
    np.testing.assert_allclose(np.asarray(out, np.float64), normal, rtol=0.01, atol=0.01)


def test_a_constant_channel_is_its_bias():
    x = jnp.full((4, 3, 3, 2), 7.0)
    out, _, var = normalize(x, jnp.ones(2), jnp.array([0.25, -1.0]), 1e-5)
    np.testing.assert_allclose(var, 0, atol=1e-4)
    np.testing.assert_allclose(out, jnp.broadcast_to(jnp.array([0.25, -1.0]), x.shape), atol=1e-2)
