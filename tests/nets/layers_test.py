import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from urnet_jax.nets.layers import norm, pool, weigh
from urnet_jax.nets.mode import Build


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weighed_samples_and_gradients(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 4, 2, 5)), dtype)
    weight, grad = jnp.array([[0.0], [1.0], [0.25]]), jnp.asarray(rng.normal(size=x.shape), dtype)
    plain = lambda w, x: w[:, None, None, :].astype(x.dtype) * x  # noqa: E731
    found, of_found = jax.vjp(weigh, weight, x)
    expected, of_x = jax.vjp(lambda x: plain(weight, x), x)
    np.testing.assert_array_equal(found, expected)
    of_weight, of_features = of_found(grad)
    np.testing.assert_array_equal(of_features, of_x(grad)[0])
    exact = (np.asarray(x, np.float64) * np.asarray(grad, np.float64)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(of_weight[:, 0], exact, rtol=1e-5, atol=1e-5)


def test_means_over_positions_are_float32():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 2, 5)), jnp.bfloat16)
    np.testing.assert_allclose(pool(x), np.asarray(x, np.float64).mean(axis=(1, 2)), rtol=1e-5)
    assert pool(x).dtype == jnp.float32


@pytest.mark.parametrize("statistics", ["running", "batch"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_norm_is_flaxs(dtype, statistics):
    x = jnp.asarray(np.random.default_rng(2).normal(3, 2, size=(8, 4, 4, 3)), dtype)
    ours = norm(3, Build(dtype=dtype), nnx.Rngs(0))
    flaxs = nnx.BatchNorm(3, momentum=0.9, epsilon=1e-5, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    running = statistics == "running"
    found, expected = (layer(x, use_running_average=running) for layer in (ours, flaxs))
    assert found.dtype == jnp.dtype(dtype)
    exact, tolerance = np.asarray(expected, np.float32), 1e-5 if dtype == "float32" else 0.02
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, atol=tolerance)
    for name in ("mean", "var"):
        np.testing.assert_allclose(getattr(ours, name)[...], getattr(flaxs, name)[...], rtol=1e-5)
