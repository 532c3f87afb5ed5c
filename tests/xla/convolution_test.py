import functools
import os
import re
import subprocess
import sys

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


def operands(batch, height, width, kernel, dtype=jnp.float32):
    rng = np.random.default_rng(batch)
    lhs = jnp.asarray(rng.normal(size=(batch, height, width, 3)), dtype)
    return lhs, jnp.asarray(rng.normal(size=(kernel, kernel, 3, 4)), dtype)


def pads(padding: str, kernel: int):
    return ((kernel // 2, kernel // 2),) * 2 if padding == "around" else padding


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    actual, expected = (np.asarray(array, np.float32) for array in (actual, expected))
    assert np.abs(actual - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=0)


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
    lhs, rhs = operands(batch, height, width, kernel)
    padding = pads(padding, kernel)
    split, out = gradients(conv_general_dilated, lhs, rhs, stride, padding)
    plain, expected_out = gradients(jax.lax.conv_general_dilated, lhs, rhs, stride, padding)
    np.testing.assert_array_equal(out, expected_out)
    for actual, expected in zip(split, plain, strict=True):
        assert_close(actual, expected, 1e-5)


# Maps that are smaller than the kernel, or whose outputs are, in one direction or in both.
@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 5),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    kernel=st.sampled_from([1, 2, 3, 5]),
    stride=st.integers(1, 3),
    padding=st.sampled_from(["SAME", "SAME_LOWER", "around"]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_small_maps_give_the_same(batch, height, width, kernel, stride, padding, dtype):
    lhs, rhs = operands(batch, height, width, kernel, dtype)
    padding = pads(padding, kernel)
    found, out = gradients(conv_general_dilated, lhs, rhs, stride, padding)
    plain, expected_out = gradients(jax.lax.conv_general_dilated, lhs, rhs, stride, padding)
    tolerance = 1e-5 if dtype == jnp.float32 else 2**-7
    for actual, expected in zip((out, *found), (expected_out, *plain), strict=True):
        assert_close(actual, expected, tolerance)


def test_a_kernel_that_covers_all_is_one_sum_by_hand():
    lhs = jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)
    rhs = jnp.arange(9.0).reshape(3, 3, 1, 1)
    out = conv(conv_general_dilated, lhs, rhs, 1, ((1, 1), (1, 1)))
    # The kernel's rows are 0 1 2, 3 4 5, 6 7 8; at the first position it sees 4 5, 7 8.
    assert out.ravel().tolist() == [
        1 * 4 + 2 * 5 + 3 * 7 + 4 * 8,
        1 * 3 + 2 * 4 + 3 * 6 + 4 * 7,
        1 * 1 + 2 * 2 + 3 * 4 + 4 * 5,
        1 * 0 + 2 * 1 + 3 * 3 + 4 * 4,
    ]


@given(
    share=st.integers(1, 512),
    devices=st.integers(1, 8),
    size=st.integers(1, 224),
    channels=st.sampled_from([1, 64, 2048]),
)
def test_chunks_divide_the_share_of_a_device(share, devices, size, channels):
    chunks = num_chunks((share * devices, size, size, channels), devices)
    assert share % chunks == 0
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
    assert num_chunks((4 * shape[0], *shape[1:]), devices=4) == chunks


def lowered(platform, function, *operands):
    return jax.jit(function).trace(*operands).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("platform", "expected"), [("cpu", 2), ("cuda", 1), ("tpu", 1)])
def test_only_cpu_splits(platform, expected):
    lhs = jax.ShapeDtypeStruct((32 * jax.device_count(), 16, 16, 4), jnp.float32)
    rhs = jax.ShapeDtypeStruct((1, 1, 4, 4), jnp.float32)

    def kernel_gradient(lhs, rhs):
        return jax.grad(lambda w: jnp.sum(conv(conv_general_dilated, lhs, w, 1, "SAME")))(rhs)

    # Neither the output nor the gradient of the input is asked for.
    text = lowered(platform, kernel_gradient, lhs, rhs)
    assert text.count("stablehlo.convolution") == expected


@pytest.mark.parametrize(
    ("size", "stride", "output_as_dot", "gradient_as_dot"),
    [(3, 1, False, False), (2, 1, True, True), (1, 1, True, True), (4, 2, False, True)],
)
def test_only_cpu_takes_small_maps_for_dots(size, stride, output_as_dot, gradient_as_dot):
    lhs = jax.ShapeDtypeStruct((2, size, size, 4), jnp.float32)
    rhs = jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)

    def output(lhs, rhs):
        return conv(conv_general_dilated, lhs, rhs, stride, ((1, 1), (1, 1)))

    def lhs_gradient(lhs, rhs):
        return jax.grad(lambda x: jnp.sum(output(x, rhs)))(lhs)

    for function, as_dot in ((output, output_as_dot), (lhs_gradient, gradient_as_dot)):
        on_cpu, on_tpu = (lowered(where, function, lhs, rhs) for where in ("cpu", "tpu"))
        assert ("stablehlo.dot_general" in on_cpu) == as_dot
        assert ("stablehlo.convolution" in on_cpu) != as_dot
        assert "stablehlo.dot_general" not in on_tpu and "stablehlo.convolution" in on_tpu


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("size", [2, 32])
def test_precision_is_that_which_was_asked_for(platform, size):
    lhs = jax.ShapeDtypeStruct((128, size, size, 4), jnp.float32)
    rhs = jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)

    def all_three(lhs, rhs):
        def loss(lhs, rhs):
            out = conv_general_dilated(
                lhs, rhs, (1, 1), "SAME", dimension_numbers=LAYOUT, precision="highest"
            )
            return jnp.sum(out**2)

        return jax.value_and_grad(loss, argnums=(0, 1))(lhs, rhs)

    text = lowered(platform, all_three, lhs, rhs)
    operations = text.count("stablehlo.convolution(") + text.count("stablehlo.dot_general ")
    assert operations >= 3
    assert len(re.findall(r"HIGHEST>?, (#stablehlo<precision )?HIGHEST", text)) == operations


def test_settings_that_a_dot_does_not_know_stay_a_convolution():
    lhs, rhs = jnp.ones((1, 2, 2, 4)), jnp.ones((3, 3, 2, 4))
    settings = {"dimension_numbers": LAYOUT, "feature_group_count": 2}
    found, expected = (
        convolution(lhs, rhs, (1, 1), "SAME", **settings)
        for convolution in (conv_general_dilated, jax.lax.conv_general_dilated)
    )
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="expected NHWC"):
        conv_general_dilated(lhs, rhs, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))


COLLECTIVES_SCRIPT = """
import jax, jax.numpy as jnp
from urnet_jax.xla import program, sharding
from urnet_jax.xla.convolution import conv_general_dilated

mesh = sharding.make_mesh()
everywhere, split = sharding.replicated(mesh), sharding.split(mesh)

def gradients(x, w, grad, stride):
    def out(x, w):
        return conv_general_dilated(
            x, w, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    return jax.vjp(out, x, w)[1](grad)

for batch, size, stride in ((128, 32, 1), (128, 32, 2), (12, 64, 1), (8, 2, 1), (8, 4, 2)):
    x, grad = (
        jax.ShapeDtypeStruct((batch, n, n, 8), jnp.float32, sharding=split)
        for n in (size, size // stride)
    )
    w = jax.ShapeDtypeStruct((3, 3, 8, 8), jnp.float32, sharding=everywhere)
    step = jax.jit(gradients, static_argnums=3, out_shardings=(split, everywhere))
    found = program.count(step.lower(x, w, grad, stride).compile().as_text()).collectives
    assert set(found) == {"all-reduce"}, (size, stride, found)
    assert found["all-reduce"].count == 1, (size, stride, found)
"""


def test_devices_exchange_nothing_but_the_gradient_of_the_kernel():
    done = subprocess.run(
        [sys.executable, "-c", COLLECTIVES_SCRIPT], capture_output=True, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_bfloat16_stays_bfloat16():
    lhs = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.bfloat16)
    rhs = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.bfloat16)
    shapes = jax.eval_shape(lambda x, w: gradients(conv_general_dilated, x, w, 1, "SAME"), lhs, rhs)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}
