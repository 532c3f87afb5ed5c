"""What channel-gated networks cost, against what is multiplied, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.channel_networks import ARCHS, Pruned
from helpers.resnet_reference import inputs, network
from helpers.traced_macs import traced_macs
from helpers.variables import apply
from urnet_jax.nets.channels.architecture import ChannelGated
from urnet_jax.nets.cost import macs_per_sample

each_arch = pytest.mark.parametrize("name", ARCHS)


@each_arch
def test_the_cost_of_an_image_is_what_the_open_channels_multiply(name):
    """Exact, where a block with nothing open in its last layer is left out whole."""
    arch, rng = ARCHS[name], np.random.default_rng(0)
    images, scale = inputs(arch)
    for share in (0.2, 0.5, 0.9, 1.0):
        gates = (rng.random(arch.num_gates) < share).astype(np.float32)
        start = 0
        for block in arch.cost.blocks:  # Some channel of each layer, that nothing is left out,
            stop = start + block.num_gates
            gates[start + block.whole : stop : block.groups] = 1
            start = stop  # but for a block that is closed whole.
        run = Pruned(arch)
        traced = jax.make_jaxpr(lambda x, s: run(x, s, gates)[0])(images[:1], scale[:1])  # noqa: B023
        assert traced_macs(traced.jaxpr) == macs_per_sample(arch, gates[None])[0]
    assert macs_per_sample(arch, np.ones((1, arch.num_gates)))[0] == arch.cost.full_macs
    assert macs_per_sample(arch, np.zeros((1, arch.num_gates)))[0] == arch.cost.always_macs


def test_the_cost_of_a_basic_block_and_of_a_bottleneck_by_hand():
    basic = ChannelGated("cifar", 8, 10, image_size=32, gate_group=8)
    # 16 channels in two groups at 32 px: each group has half of both convolutions.
    gates = np.zeros((3, basic.num_gates), np.float32)
    gates[1, 0] = gates[2, 0] = gates[2, 1] = 1
    half = 9 * 16 * 8 * 32 * 32 * 2
    expected = basic.cost.always_macs + np.array([0, half, 2 * half])
    np.testing.assert_array_equal(macs_per_sample(basic, gates), expected)
    np.testing.assert_array_equal(macs_per_sample(basic, jnp.asarray(gates)), expected)
    np.testing.assert_allclose(basic.cost.share(gates), expected / basic.cost.full_macs, rtol=1e-6)

    wide = ChannelGated("imagenet", 50, 10, image_size=32, width=64, shortcut="B", gate_group=32)
    # The first block at 8 px: 64 -> 64 -> 64 -> 256, one of two groups of the first layer and both
    # of the second.
    gates = np.zeros((1, wide.num_gates), np.float32)
    gates[0, [0, 2, 3]] = 1
    used = 64 * (64 * 32 + 9 * 32 * 64 + 64 * 256)
    assert macs_per_sample(wide, gates)[0] == wide.cost.always_macs + used
    # Half of the first layer on average, by gates that are open with that probability.
    soft = np.array(gates)
    soft[0, :2] = 0.25
    share = wide.cost.share(soft)[0] * wide.cost.full_macs
    assert share == pytest.approx(wide.cost.always_macs + 64 * (64 * 16 + 9 * 16 * 64 + 64 * 256))


def test_a_block_that_is_closed_costs_nothing_whatever_its_channels_are():
    basic = ChannelGated("cifar", 8, 10, image_size=32, gate_group=8, gate_blocks=True)
    assert [block.num_gates for block in basic.cost.blocks] == [3, 5, 9]
    assert basic.num_gates == 17 and [n for _, n in basic.gate_groups] == [3, 5, 9]
    gates = np.zeros((3, basic.num_gates), np.float32)
    gates[0, 1:3] = gates[1, :2] = gates[2, :3] = 1
    half = 9 * 16 * 8 * 32 * 32 * 2
    expected = basic.cost.always_macs + np.array([0, half, 2 * half])
    np.testing.assert_array_equal(macs_per_sample(basic, gates), expected)
    # A gate of a block that is open with a probability halves what its channels cost.
    gates[2, 0] = 0.5
    found = basic.cost.share(gates)[2] * basic.cost.full_macs
    assert found == pytest.approx(basic.cost.always_macs + half)


@pytest.mark.parametrize("name", ["both", "both, bottleneck"])
def test_a_gate_of_a_block_that_is_open_with_a_probability_counts_once(name):
    """Also as the network gives its gates, and so does the slope of the cost."""
    arch = ARCHS[name]
    gates = np.ones((1, arch.num_gates), np.float32)
    gates[0, 0] = 0.3
    first = sum(arch.cost.blocks[0].macs) / arch.cost.full_macs
    graph, params, stats = network(arch)
    images, scale = inputs(arch)
    _, given, _ = apply(graph, params, stats, images[:1], scale[:1], gates=jnp.asarray(gates))
    np.testing.assert_array_equal(given, gates)
    share, slope = jax.value_and_grad(lambda g: arch.cost.share(g)[0])(jnp.asarray(gates))
    np.testing.assert_allclose(share, 1 - 0.7 * first, rtol=1e-5)
    np.testing.assert_allclose(slope[0, 0], first, rtol=1e-5)


def test_networks_of_billions_are_counted_in_jax_too():
    """JAX has no integers beyond int32."""
    arch = ChannelGated("imagenet", 50, 1000, image_size=224, width=64, shortcut="B", gate_group=64)
    gates = (np.random.default_rng(0).random((3, arch.num_gates)) < 0.5).astype(np.float32)
    exact = macs_per_sample(arch, gates)
    assert exact.dtype == np.int64 and arch.cost.full_macs > 4e9
    np.testing.assert_allclose(jax.jit(arch.cost.macs)(gates), exact, rtol=1e-6)
    shares = jax.jit(arch.cost.share)(gates)
    np.testing.assert_allclose(shares, exact / arch.cost.full_macs, rtol=1e-6)


@pytest.mark.parametrize(
    ("depth", "published", "by_density"),
    [
        (18, 1.81e9, None),
        (34, 3.66e9, lambda d1, d2: 0.138 + 3.526 * d1),
        (50, 4.09e9, lambda d1, d2: 0.48 + 0.94 * d1 + 1.85 * d1 * d2 + 0.82 * d2),
    ],
)
def test_published_networks_cost_what_is_published(depth, published, by_density):
    """Multiply-adds with all channels, and where each gate is open with the same probability."""
    arch = ChannelGated("imagenet", depth, 1000, image_size=224, width=64, shortcut="B")
    assert arch.cost.full_macs - arch.cost.gate_macs == pytest.approx(published, rel=0.01)
    assert arch.cost.gate_macs < 0.01 * arch.cost.full_macs
    for d1, d2 in ((0.2, 0.2), (0.5, 0.5), (0.5, 0.8), (1.0, 0.3)) if by_density else ():
        parts = []
        for stage in arch.stages:
            layers = [d1] if stage.block == "basic" else [d1, d2]
            parts += stage.num_blocks * [np.repeat(layers, arch.groups(stage))]
        share = arch.cost.share(np.concatenate(parts)[None].astype(np.float32))[0]
        found = share * arch.cost.full_macs - arch.cost.gate_macs
        assert found == pytest.approx(1e9 * by_density(d1, d2), rel=0.01)
