"""Counts in compiled programs, against numbers that are known by hand."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from urnet_jax.xla import program

IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)
CONV = 2 * 8 * 8 * 4 * 3 * 3 * 4
"""Multiply-adds of KERNEL on IMAGES."""


def conv(images, kernel, stride=1):
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def count(function, *arguments):
    return program.count(str(jax.jit(function).lower(*arguments).compile().as_text()))


def test_convolutions_and_products():
    assert count(conv, IMAGES, KERNEL) == (CONV, {})
    a, b = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((5, 300), (300, 200)))
    assert count(jnp.dot, a, b).macs == 5 * 300 * 200
    assert count(lambda x: jnp.exp(x) + 1, a) == (0, {})


def test_a_loop_counts_as_often_as_it_runs():
    def looped(images, kernel):
        return jax.lax.fori_loop(0, 7, lambda _, x: conv(x, kernel), images)

    def nested(images, kernels):
        return jax.lax.scan(lambda x, kernel: (looped(x, kernel), None), images, kernels)[0]

    assert count(looped, IMAGES, KERNEL).macs == 7 * CONV
    kernels = jax.ShapeDtypeStruct((3, *KERNEL.shape), jnp.float32)
    assert count(nested, IMAGES, kernels).macs == 3 * 7 * CONV


def test_gradients_of_a_strided_convolution_take_twice_as_much():
    def loss(images, kernel):
        return (conv(images, kernel, stride=2) ** 2).sum()

    forward = CONV // 4
    # The gradient of the input is a convolution over a dilated one, a few borders more or less.
    total = count(jax.value_and_grad(loss, argnums=(0, 1)), IMAGES, KERNEL).macs
    assert total == pytest.approx(3 * forward, rel=0.01)


def test_of_branches_the_costliest_counts():
    def branched(images, kernel, which):
        def times(n):
            return lambda: jax.lax.fori_loop(0, n, lambda _, x: conv(x, kernel), images)

        return jax.lax.switch(which, [times(1), times(5), lambda: images])

    which = jax.ShapeDtypeStruct((), jnp.int32)
    assert count(branched, IMAGES, KERNEL, which).macs == 5 * CONV


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the layouts are XLA:CPU's")
def test_convolutions_that_run_in_naive_loops():
    def gradient(images, kernel):
        return jax.grad(lambda images: (conv(images, kernel) ** 2).sum())(images)

    def looped(images, kernels):
        def loss(images):
            return (jax.lax.scan(lambda x, w: (conv(x, w), None), images, kernels)[0] ** 2).sum()

        return jax.grad(loss)(images)

    def naive(function, *arguments):
        text = str(jax.jit(function).lower(*arguments).compile().as_text())
        return len(program.naive_convolutions(text))

    assert naive(conv, IMAGES, KERNEL) == naive(gradient, IMAGES, KERNEL) == 0
    small = jax.ShapeDtypeStruct((2, 2, 2, 4), jnp.float32)
    assert naive(conv, small, KERNEL) == 1
    for length in (1, 3):
        kernels = jax.ShapeDtypeStruct((length, *KERNEL.shape), jnp.float32)
        assert naive(looped, IMAGES, kernels) == 1
    with pytest.raises(ValueError, match="no ENTRY"):
        program.naive_convolutions("nothing of the kind")


def test_a_loop_of_unknown_length_that_computes_is_an_error():
    def until(images, kernel):
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: conv(x, kernel), images)

    with pytest.raises(ValueError, match="does not say how often it runs"):
        count(until, IMAGES, KERNEL)
    with pytest.raises(ValueError, match="no ENTRY"):
        program.count("nothing of the kind")


COLLECTIVES_SCRIPT = """
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from urnet_jax.xla import program, sharding

mesh = sharding.make_mesh()

def sums(x):
    def body(_, x):
        return x + jax.lax.psum(x.sum(0), "data")
    return jax.lax.all_gather(jax.lax.fori_loop(0, 6, body, x), "data")

mapped = jax.shard_map(sums, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=sharding.split(mesh))
found = program.count(jax.jit(mapped).lower(x).compile().as_text()).collectives
assert found == {"all-reduce": (6, 6 * 16 * 4), "all-gather": (1, 4 * 2 * 16 * 4)}, found
"""


def test_collectives_and_their_bytes():
    done = subprocess.run(
        [sys.executable, "-c", COLLECTIVES_SCRIPT], capture_output=True, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_asynchronous_collectives_count_once():
    text = """
HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %s = f32[8,128]{1,0:T(8,128)} all-reduce-start(%x), to_apply=%add
  %d = f32[8,128]{1,0:T(8,128)} all-reduce-done(%s)
  %t = (f32[8,128]{1,0}, f32[16]{0}) all-reduce-start(%x, %y), to_apply=%add
  %u = (f32[8,128]{1,0}, f32[16]{0}) all-reduce-done(%t)
  %g = (f32[2,128]{1,0:T(2,128)}, f32[8,128]{1,0}) all-gather-start(%z), dimensions={0}
  %p = (f32[8,128]{1,0}, f32[8,128]{1,0}, u32[], u32[]) collective-permute-start(%d)
  ROOT %q = f32[8,128]{1,0} collective-permute-done(%p)
}
"""
    found = program.count(text).collectives
    assert found["all-reduce"] == (2, 4096 + 4096 + 64)
    assert found["all-gather"] == (1, 4096)
    assert found["collective-permute"] == (1, 4096)


def test_a_loop_whose_length_only_its_condition_tells():
    # As XLA writes for TPUs.
    text = """
HloModule m

%condition (i: (s32[], f32[4,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  %i = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}) parameter(0)
  %c = s32[]{:T(128)} get-tuple-element(%i), index=0
  ROOT %lt = pred[]{:T(512)} compare(%c, %n), direction=LT
}

%fused (a: f32[4,8], b: f32[8,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  ROOT %r = f32[4,8]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

%body (j: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %j = (s32[], f32[4,8]{1,0}) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%j), index=1
  %w = f32[8,8]{1,0} constant({...})
  %y = f32[4,8]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%k, %y)
}

ENTRY %main (x: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %x = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[4,8]{1,0}) while(%x), condition=%condition, body=%body
}
"""
    assert program.count(text).macs == 5 * 4 * 8 * 8
    with pytest.raises(ValueError, match="The loop loop does not say"):
        program.count(text.replace("direction=LT", "direction=NE"))
