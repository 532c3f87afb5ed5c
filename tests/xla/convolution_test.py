import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from urnet_jax.xla.convolution import MAX_CHUNKS, conv_general_dilated, num_chunks

LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(convolution, lhs, rhs, stride: int, padding):
    return convolution(lhs, rhs, (stride, stride), padding, dimension_numbers=LAYOUT)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def gradients(convolution, lhs, rhs, stride: int, padding):
    """Of both operands, every output with its own weight in the sum; and the output."""

    def weighted(lhs, rhs):
        out = conv(convolution, lhs, rhs, stride, padding)
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return jnp.sum(out * weights), out

    return jax.grad(weighted, argnums=(0, 1), has_aux=True)(lhs, rhs)


# Batches up to 41 of up to 24x24 positions: one chunk to five; primes cannot be divided.
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    batch=st.sampled_from([1, 2, 7, 12, 30, 31, 36, 41]),
    height=st.sampled_from([7, 16, 24]),
    width=st.sampled_from([8, 17, 24]),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    padding=st.sampled_from(["SAME", "VALID", "around"]),
)
def test_the_split_gradient_is_the_gradient(batch, height, width, kernel, stride, padding):
    rng = np.random.default_rng(batch)
    lhs = jnp.asarray(rng.normal(size=(batch, height, width, 3)), jnp.float32)
    rhs = jnp.asarray(rng.normal(size=(kernel, kernel, 3, 4)), jnp.float32)
    padding = ((kernel // 2, kernel // 2),) * 2 if padding == "around" else padding
    split, out = gradients(conv_general_dilated, lhs, rhs, stride, padding)
    plain, expected_out = gradients(jax.lax.conv_general_dilated, lhs, rhs, stride, padding)
    np.testing.assert_array_equal(out, expected_out)
    for actual, expected in zip(split, plain, strict=True):
        assert actual.shape == expected.shape and actual.dtype == expected.dtype
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@given(
    batch=st.integers(1, 4096), size=st.integers(1, 224), channels=st.sampled_from([1, 64, 2048])
)
def test_chunks_divide_the_batch(batch, size, channels):
    chunks = num_chunks((batch, size, size, channels))
    assert batch % chunks == 0
    assert 1 <= chunks <= MAX_CHUNKS


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((128, 32, 32, 16), 8),  # 131072 positions
        ((32, 16, 16, 16), 2),  # 8192 positions, 4096 to a chunk
        ((36, 16, 16, 16), 2),
        ((37, 32, 32, 16), 1),  # a prime
        ((35, 32, 32, 16), 7),  # 8 chunks are wanted, and 7 is the most that divides 35
        ((1, 224, 224, 64), 1),
        ((8, 8, 8, 64), 1),
    ],
)
def test_number_of_chunks(shape, chunks):
    assert num_chunks(shape) == chunks


@pytest.mark.parametrize(("platform", "expected"), [("cpu", 2), ("cuda", 1), ("tpu", 1)])
def test_only_cpu_splits(platform, expected):
    lhs = jax.ShapeDtypeStruct((32, 16, 16, 4), jnp.float32)
    rhs = jax.ShapeDtypeStruct((1, 1, 4, 4), jnp.float32)

    @jax.jit
    def kernel_gradient(lhs, rhs):
        return jax.grad(lambda w: jnp.sum(conv(conv_general_dilated, lhs, w, 1, "SAME")))(rhs)

    lowered = kernel_gradient.trace(lhs, rhs).lower(lowering_platforms=(platform,))
    # Neither the output nor the gradient of the input is asked for.
    assert lowered.as_text().count("stablehlo.convolution") == expected


def test_bfloat16_stays_bfloat16():
    lhs = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.bfloat16)
    rhs = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.bfloat16)
    shapes = jax.eval_shape(lambda x, w: gradients(conv_general_dilated, x, w, 1, "SAME"), lhs, rhs)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}
