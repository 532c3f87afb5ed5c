import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from helpers.traced_macs import traced_macs
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.cost import (
    flops_per_sample,
    gate_overhead,
    macs_per_sample,
)
from urnet_jax.nets.resnet import ResNet


def cifar(depth: int, **kwargs) -> Architecture:
    return Architecture("cifar", depth, num_classes=10, **{"image_size": 32, **kwargs})


def imagenet(depth: int, **kwargs) -> Architecture:
    defaults = {"image_size": 224, "width": 64, "shortcut": "B", "gate_reduction": 16}
    return Architecture("imagenet", depth, num_classes=1000, **{**defaults, **kwargs})


RESNET8 = cifar(8)
# Worked by hand, 32 px, width 16. Stem 27*16*32*32, head 64*10; gates of 16, 16 and 32 channels
# with 8, 8 and 16 units: 32*8 + 8 = 264, 264, 64*16 + 16 = 1040.
RESNET8_ALWAYS = 442_368 + 640 + (264 + 264 + 1040)
# 2*9*16*16*32*32; 9*(16*32 + 32*32)*16*16; 9*(32*64 + 64*64)*8*8.
RESNET8_BLOCKS = (4_718_592, 3_538_944, 3_538_944)


def xla_macs(kernel: int, stride: int, in_channels: int, out_channels: int, size: int):
    """One square convolution as XLA sees it: multiply-adds, and a side of its SAME output."""

    def conv(x, w, padding):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), padding, dimension_numbers=layout
        )

    w = jax.ShapeDtypeStruct((kernel, kernel, in_channels, out_channels), jnp.float32)
    x = jax.ShapeDtypeStruct((1, size, size, in_channels), jnp.float32)
    out_size: int = jax.eval_shape(lambda x, w: conv(x, w, "SAME"), x, w).shape[1]
    # XLA leaves out what falls on the border, so it is asked about an input that has none.
    whole = (out_size - 1) * stride + kernel
    x = jax.ShapeDtypeStruct((1, whole, whole, in_channels), jnp.float32)
    analysis = jax.jit(lambda x, w: conv(x, w, "VALID")).lower(x, w).cost_analysis()
    assert analysis is not None
    return round(analysis["flops"]) // 2, out_size


def xla_chain(size: int, *convs: tuple[int, int, int, int]) -> int:
    """Multiply-adds of convolutions (kernel, stride, in, out), each on the output of the last."""
    total = 0
    for kernel, stride, in_channels, out_channels in convs:
        macs, size = xla_macs(kernel, stride, in_channels, out_channels, size)
        total += macs
    return total


@pytest.mark.parametrize(
    ("arch", "published_gmacs"),
    [
        (cifar(20, gated=False), 0.0408),
        (cifar(110, gated=False), 0.253),
        (cifar(110, gated=False), 0.255),
        (imagenet(18, gated=False), 1.814),
        (imagenet(50, gated=False), 4.089),
        (imagenet(101, gated=False), 7.801),
    ],
    ids=lambda value: f"ResNet-{value.depth}" if isinstance(value, Architecture) else str(value),
)
def test_published_multiply_adds(arch, published_gmacs):
    assert arch.cost.full_macs == pytest.approx(published_gmacs * 1e9, rel=0.01)


@pytest.mark.parametrize(
    ("depth", "blocks", "published_flops"),
    [(72, 24, 1.17e10), (75, 25, 1.21e10), (84, 28, 1.34e10), (101, 33, 1.56e10)],
)
def test_flops_of_table_2_of_the_paper(depth, blocks, published_flops):
    arch = imagenet(depth, gated=False)
    assert arch.num_blocks == blocks
    assert 2 * arch.cost.full_macs == pytest.approx(published_flops, rel=0.01)


def test_identity_bottleneck_of_stage_3():
    blocks = imagenet(101).cost.unit_macs
    assert np.all(blocks[8:30] == blocks[8])
    # 1024 -> 256 -> 256 -> 1024 channels on 14 x 14 pixels.
    assert blocks[8] == 14 * 14 * (1024 * 256 + 9 * 256 * 256 + 256 * 1024)
    assert 2 * blocks[8] == pytest.approx(0.0437e10, rel=0.001)


@pytest.mark.parametrize(
    ("arch", "bound"), [(cifar(110), 0.0004), (imagenet(101), 0.0008)], ids=["110", "101"]
)
def test_gate_overhead_is_what_the_paper_claims(arch, bound):
    assert 0 < gate_overhead(arch) <= bound


def test_gate_overhead_by_hand_and_without_gates():
    whole = RESNET8_ALWAYS + sum(RESNET8_BLOCKS)
    assert gate_overhead(RESNET8) == pytest.approx(1568 / (whole - 1568), rel=1e-12)
    assert gate_overhead(cifar(8, gated=False)) == 0


def test_parts_of_resnet8_by_hand():
    cost = RESNET8.cost
    assert cost.always_macs == RESNET8_ALWAYS
    assert tuple(cost.unit_macs) == RESNET8_BLOCKS
    assert tuple(cost.unit_gate_macs) == (264, 264, 1040)


def test_plain_network_pays_for_no_gates():
    cost = cifar(8, gated=False).cost
    assert cost.always_macs == RESNET8_ALWAYS - 1568
    assert not cost.unit_gate_macs.any()


def test_only_projection_shortcuts_cost():
    projections = 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8
    cost = RESNET8.cost
    assert cifar(8, shortcut="pool").cost.always_macs == cost.always_macs
    projected = cifar(8, shortcut="B").cost
    assert projected.always_macs == cost.always_macs + projections
    np.testing.assert_array_equal(projected.unit_macs, cost.unit_macs)


def test_gates_shrink_with_reduction_and_never_below_one_unit():
    assert tuple(cifar(8, gate_reduction=16).cost.unit_gate_macs) == (33, 33, 130)
    assert tuple(cifar(8, gate_reduction=9).cost.unit_gate_macs) == (33, 33, 195)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray, jax.jit(lambda x: x)])
def test_cost_of_a_gate_matrix_by_hand(convert):
    gates = np.array([[0, 0, 0], [1, 0, 1], [0.02, 0.9, 0.5], [0, 0.3, 0]], np.float32)
    first, second, third = RESNET8_BLOCKS
    expected = RESNET8_ALWAYS + np.array([0, first + third, first + second + third, second])
    macs = macs_per_sample(RESNET8, convert(gates))
    # Each number is below 2 ** 24, so float32 holds it exactly too.
    np.testing.assert_array_equal(np.asarray(macs), expected)
    both = flops_per_sample(RESNET8, convert(gates))
    np.testing.assert_array_equal(np.asarray(both), 2 * expected)


@pytest.mark.parametrize(
    "arch",
    [cifar(20), cifar(110, shortcut="B"), imagenet(18), imagenet(101)],
    ids=lambda arch: f"ResNet-{arch.depth}",
)
def test_all_on_and_all_off(arch):
    on_off = np.repeat([[1.0], [0.0]], arch.num_blocks, axis=1)
    whole, least = macs_per_sample(arch, on_off)
    assert whole == arch.cost.full_macs
    assert least == arch.cost.always_macs
    traced = jax.jit(lambda gates: macs_per_sample(arch, gates))(jnp.asarray(on_off))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, [whole, least], rtol=1e-6)


def test_the_share_for_losses_is_that_of_the_count_and_straight_between():
    arch = cifar(14)
    rng = np.random.default_rng(0)
    gates = rng.integers(0, 2, (20, 6)).astype(np.float32)
    counted = macs_per_sample(arch, gates) / arch.cost.full_macs
    np.testing.assert_allclose(arch.cost.share(jnp.asarray(gates)), counted, rtol=1e-6)
    np.testing.assert_allclose(arch.cost.share(gates), counted, rtol=1e-6)
    half = arch.cost.share(jnp.full((1, 6), 0.5))
    both = arch.cost.share(jnp.array([[0.0] * 6, [1.0] * 6]))
    np.testing.assert_allclose(half, both.mean(keepdims=True), rtol=1e-6)
    slope = jax.grad(lambda g: arch.cost.share(g).sum())(jnp.full((1, 6), 0.5))
    np.testing.assert_allclose(slope[0], arch.cost.unit_macs / arch.cost.full_macs, rtol=1e-6)


NINE_GATES = hnp.arrays(np.float32, (4, 9), elements=st.sampled_from([0.0, 0.25, 1.0]))


@settings(max_examples=50, deadline=None)
@given(fewer=NINE_GATES, extra=NINE_GATES)
def test_cost_rises_with_the_gates_and_in_jax_as_in_numpy(fewer, extra):
    arch = cifar(20)
    more = np.maximum(fewer, extra)
    low, high = macs_per_sample(arch, fewer), macs_per_sample(arch, more)
    opened = ((more > 0) & (fewer == 0)).any(axis=1)
    assert np.all(high[opened] > low[opened])
    assert np.all(high[~opened] == low[~opened])
    in_jax = macs_per_sample(arch, jnp.asarray(more))
    np.testing.assert_allclose(np.asarray(in_jax), high, rtol=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(9,), (4, 8), (2, 4, 9)])
def test_gates_of_another_network_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[B, 9\], one row per sample"):
        macs_per_sample(cifar(20), np.ones(shape))


@pytest.mark.parametrize("size", [8, 9, 32])
def test_basic_blocks_against_xla(size):
    arch = cifar(8, image_size=size, image_channels=1, shortcut="B")
    cost = arch.cost
    half = xla_macs(3, 2, 16, 32, size)[1]
    stem = xla_chain(size, (3, 1, 1, 16))
    projections = xla_chain(size, (1, 2, 16, 32)) + xla_chain(half, (1, 2, 32, 64))
    assert cost.always_macs - cost.gate_macs == stem + projections + 64 * 10
    assert cost.unit_macs[0] == xla_chain(size, (3, 1, 16, 16), (3, 1, 16, 16))
    assert cost.unit_macs[1] == xla_chain(size, (3, 2, 16, 32), (3, 1, 32, 32))
    assert cost.unit_macs[2] == xla_chain(half, (3, 2, 32, 64), (3, 1, 64, 64))


@pytest.mark.parametrize(
    ("image_size", "sides"), [(64, (16, 16, 8, 4, 2)), (75, (19, 19, 10, 5, 3))]
)
def test_bottlenecks_against_xla(image_size, sides):
    arch = imagenet(50, image_size=image_size)
    cost = arch.cost
    always = xla_chain(image_size, (7, 2, 3, 64)) + 2048 * 1000
    in_channels, block = 64, 0
    for stage, (mid, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        stride = 1 if stage == 0 else 2
        always += xla_chain(sides[stage], (1, stride, in_channels, 4 * mid))
        entry = xla_chain(
            sides[stage], (1, 1, in_channels, mid), (3, stride, mid, mid), (1, 1, mid, 4 * mid)
        )
        body = xla_chain(
            sides[stage + 1], (1, 1, 4 * mid, mid), (3, 1, mid, mid), (1, 1, mid, 4 * mid)
        )
        assert cost.unit_macs[block : block + blocks].tolist() == [entry] + [body] * (blocks - 1)
        in_channels, block = 4 * mid, block + blocks
    assert cost.always_macs - cost.gate_macs == always


@pytest.mark.parametrize(
    "arch",
    [
        cifar(20),
        cifar(14, image_size=9, image_channels=1, shortcut="B", gate_reduction=5),
        cifar(14, shortcut="pool", gated=False),
        imagenet(18, image_size=75),
        imagenet(101, image_size=224),
    ],
    ids=Architecture.describe,
)
def test_the_network_itself_multiplies_as_often_as_counted(arch):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: ResNet(arch, rngs=nnx.Rngs(0))))

    def run(state, images, scale):
        return nnx.merge(graphdef, state)(images, GateInputs(scale)).prediction

    images = jax.ShapeDtypeStruct(
        (1, arch.image_size, arch.image_size, arch.image_channels), jnp.float32
    )
    traced = jax.make_jaxpr(run)(state, images, jax.ShapeDtypeStruct((1,), jnp.float32))
    assert traced_macs(traced.jaxpr) == arch.cost.full_macs


def test_external_gates_by_hand():
    """A ResNet-8 to 32 hidden units, S to them, and from those to a logit for each of 9 blocks."""
    arch = Architecture("cifar", 20, 10, image_size=32, gate_network="external")
    cost, plain = arch.cost, cifar(20, gated=False).cost
    beside = cifar(8, gated=False).cost.full_macs - 64 * 10 + 64 * 32
    assert cost.external_macs == beside + 32 + 32 * 9
    assert cost.always_macs == plain.always_macs + cost.external_macs
    assert not cost.unit_gate_macs.any()
    np.testing.assert_array_equal(cost.unit_macs, plain.unit_macs)
    assert gate_overhead(arch) == cost.external_macs / cifar(20, gated=False).cost.full_macs
