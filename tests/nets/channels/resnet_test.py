"""A network that masks channels, against one that has only those which gates open."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.execution_networks import QUICK, each_execution
from helpers.resnet_reference import BATCH, Reference, inputs, network
from helpers.traced_macs import traced_macs
from helpers.variables import apply
from urnet_jax.nets.channels.architecture import ChannelGated
from urnet_jax.nets.channels.resnet import ChannelResNet
from urnet_jax.nets.contract import GateInputs, Unit
from urnet_jax.nets.cost import macs_per_sample
from urnet_jax.nets.mode import Execution, Mode


@dataclasses.dataclass(frozen=True)
class TwoStages(ChannelGated):
    @property
    def stages(self) -> Any:
        return super().stages[:2]


ARCHS = {
    "basic": ChannelGated("cifar", 14, 5, image_size=8, width=4, shortcut="A", gate_group=2),
    "single": ChannelGated("cifar", 8, 5, image_size=9, width=4, shortcut="B", gate_hidden=3),
    "one cost": ChannelGated("cifar", 8, 5, image_size=8, width=4, gate_scale=False),
    "bottleneck": TwoStages("imagenet", 50, 5, image_size=16, width=4, shortcut="B", gate_group=2),
    "both": ChannelGated("cifar", 14, 5, image_size=8, width=4, gate_group=2, gate_blocks=True),
    "both, bottleneck": TwoStages(
        "imagenet", 50, 5, image_size=16, width=4, shortcut="B", gate_group=2, gate_blocks=True
    ),
}
each_arch = pytest.mark.parametrize("name", ARCHS)


class Pruned(Reference):
    """Of one image, whose closed channels are not there at all."""

    def __call__(self, image: Any, scale: Any, gates: Any = None) -> tuple[Any, Any]:
        """Logits and gates, which may be given."""
        arch, stride = self.arch, 1 if self.arch.family == "cifar" else 2
        x = jnp.maximum(self.norm(self.conv(image, "conv1", stride), "bn1"), 0)
        if arch.family == "imagenet":
            around = ((0, 0), (1, 1), (1, 1), (0, 0))
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)
        used, start = [], 0
        for i, spec in enumerate(arch.stages, start=1):
            for n in range(spec.num_blocks):
                name, stop = f"stage{i}/{n}", start + arch.gates_of_block(spec)
                logits = self.scores(x, scale, f"{name}/gate")
                own = np.asarray(logits >= 0)[0] if gates is None else gates[start:stop]
                own = self.left(own)
                entry = n == 0 and spec.changes_shape
                y = self.padded(x, name, spec) if entry else x
                f = self.open_residual(x, name, spec, spec.stride if n == 0 else 1, own)
                x = jnp.maximum(y if f is None else y + f, 0)
                used.append(own)
                start = stop
        return self.linear(jnp.mean(x, (1, 2)), "fc"), np.concatenate(used)

    def padded(self, x: Any, name: str, spec: Any) -> Any:
        if self.arch.shortcut == "B":
            return self.shortcut(x, name, spec)
        extra = spec.out_channels - spec.in_channels
        around = [(0, 0)] * 3 + [(extra // 2, extra - extra // 2)]
        return jnp.pad(x[:, ::2, ::2], around)

    def scores(self, x: Any, scale: Any, name: str) -> Any:
        seen = jnp.mean(x, (1, 2))
        if self.arch.gate_scale:
            seen = jnp.concatenate([seen, jnp.asarray(scale)[:, None]], axis=1)
        hidden = self.norm(seen @ self.params[f"{name}/fc1/kernel"], f"{name}/bn")
        hidden = jnp.maximum(hidden, 0)
        whole = [self.linear(hidden, f"{name}/block")] if self.arch.gate_blocks else []
        return jnp.concatenate([*whole, self.linear(hidden, f"{name}/fc2")], axis=1)

    def left(self, gates: Any) -> Any:
        """Gates without those that another one leaves nothing."""
        if not self.arch.gate_blocks:
            return gates
        closed = not gates[0] or not gates[1:].any()
        return np.zeros_like(gates) if closed else gates

    def open_residual(self, x: Any, name: str, spec: Any, stride: int, gates: Any) -> Any:
        strides = [stride, 1] if spec.block == "basic" else [1, stride, 1]
        channels = np.asarray(gates)[self.arch.gate_blocks :]
        layers = [
            np.flatnonzero(np.repeat(g, self.arch.gate_group))
            for g in np.split(channels, len(strides) - 1)
        ]
        if not layers[-1].size:
            return None
        kept: Any = [None, *layers, None]
        for i, s in enumerate(strides, start=1):
            kernel = self.params[f"{name}/conv{i}/kernel"]
            come, go = (slice(None) if k is None else k for k in (kept[i - 1], kept[i]))
            x = x if s == 0 else self.some(x, kernel[:, :, come][..., go], s)
            x = self.norm_of(x, f"{name}/bn{i}", go)
            x = jnp.maximum(x, 0) if i < len(strides) else x
        return x

    def some(self, x: Any, kernel: Any, stride: int) -> Any:
        around = kernel.shape[0] // 2
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(around, around)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    def norm_of(self, x: Any, name: str, which: Any) -> Any:
        mean, var = (self.stats[f"{name}/{kind}"][which] for kind in ("mean", "var"))
        factor = jax.lax.rsqrt(var + 1e-5) * self.params[f"{name}/scale"][which]
        return (x - mean) * factor + self.params[f"{name}/bias"][which]


@each_arch
def test_masking_is_leaving_out(name):
    arch = ARCHS[name]
    images, scale = inputs(arch)
    prediction, gates, _ = apply(*network(arch), images, scale)
    gates = np.asarray(gates)
    assert gates.shape == (BATCH, arch.num_gates) and 0.05 < gates.mean() < 0.9
    for n in range(BATCH):
        logits, own = Pruned(arch)(images[n : n + 1], scale[n : n + 1])
        np.testing.assert_array_equal(gates[n], own)
        np.testing.assert_allclose(prediction[n], logits[0], rtol=1e-4, atol=1e-4)


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


def test_a_closed_block_learns_what_opening_it_would_do():
    """Its channels are masked, and its own gate has a gradient all the same."""
    arch = ARCHS["both"]
    graph, params, stats = network(arch)
    images, scale = inputs(arch)
    gates = jnp.ones((BATCH, arch.num_gates)).at[:, 0].set(0)

    def total(gates: Any) -> Any:
        prediction, used, _ = apply(graph, params, stats, images, scale, gates=gates)
        return jnp.sum(jnp.sin(prediction)), used

    slope, used = jax.grad(total, has_aux=True)(gates)
    block = arch.cost.blocks[0].num_gates
    assert not np.asarray(used[:, :block]).any() and np.asarray(used[:, block:]).all()
    assert np.abs(slope[:, 0]).min() > 1e-6


def test_priors_of_both_kinds_of_gates_open_one_block_after_another():
    """By hand, for three blocks of 2, 4 and 8 groups: the last two change shape."""
    arch = ChannelGated("cifar", 8, 10, image_size=32, gate_group=8, gate_blocks=True)
    assert arch.block_order == (1, 2, 0)
    opens, full = np.array(arch.opens_at), arch.cost.full_macs
    macs = [sum(block.macs) for block in arch.cost.blocks]
    low, middle = arch.cost.always_macs, arch.cost.always_macs + macs[1]
    quarters = np.array([1, 3, 5, 7]) / 8
    np.testing.assert_allclose(opens[3:8], [low / full, *(low + macs[1] * quarters) / full])
    assert opens[8] == middle / full and opens[0] == (middle + macs[2]) / full
    assert opens[2] == pytest.approx(1 - macs[0] / 4 / full)


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


@each_execution
@pytest.mark.parametrize("name", ["basic", "bottleneck", "both", "both, bottleneck"])
def test_every_execution_equals_dense(name, how: Execution):
    arch = ARCHS[name]
    images, scale = inputs(arch)
    rng = np.random.default_rng(1)
    given = jnp.asarray(rng.integers(0, 2, (BATCH, arch.num_gates)), jnp.float32)
    given = given.at[0].set(0).at[1, : arch.num_gates // 2].set(0)
    graph, params, stats = network(arch)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
    def run(execution: Execution, gates: Any) -> Any:
        return apply(graph, params, stats, images, scale, gates=gates, execution=execution)[:2]

    for gates in (None, given):
        dense, other = run("dense", gates), run(how, gates)
        np.testing.assert_allclose(other[0], dense[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(other[1], dense[1])


def test_a_block_of_closed_gates_adds_nothing():
    arch = ARCHS["basic"]
    graph, params, stats = network(arch)
    net: Any = nnx.merge(graph, params, stats)
    unit = net.stage2.entry
    assert isinstance(unit, Unit)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    mask = jnp.array([[0.0] * 4, [0.0, 1.0, 0.0, 0.0]])
    residual = unit.residual(x, mask, Mode())
    assert not residual[0].any() and residual[1].any()


@each_arch
def test_with_a_prior_s_is_the_share_of_flops_before_anything_is_learned(name):
    if not ARCHS[name].gate_scale:
        pytest.skip("such gates do not see S")
    arch = dataclasses.replace(ARCHS[name], gate_prior=20.0)
    net = ChannelResNet(arch, rngs=nnx.Rngs(0))
    scale = jnp.linspace(0, 1, 32)
    images = jax.random.normal(jax.random.key(0), (32, arch.image_size, arch.image_size, 3))
    gates = np.asarray(net(images, GateInputs(scale - 1e-6)).gates)
    used = macs_per_sample(arch, gates) / arch.cost.full_macs
    least = arch.cost.always_macs / arch.cost.full_macs
    one = np.diff(np.unique(np.array(arch.opens_at))).max() + 0.02
    np.testing.assert_array_less(np.abs(used - np.maximum(scale, least)), one)
    assert np.all(np.diff(used) >= 0) and used[-1] == 1


def test_gates_learn_by_the_sums_over_their_channels():
    """The gradient of a gate's mask, against that of the plain product."""
    arch = ARCHS["bottleneck"]
    graph, params, stats = network(arch)
    net: Any = nnx.merge(graph, params, stats)
    unit = net.stage1.entry
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 4))
    mask = jax.random.uniform(jax.random.key(2), (3, arch.gates_of_block(arch.stages[0])))

    def plainly(mask: Any) -> Any:
        first, second = jnp.split(jnp.repeat(mask, 2, axis=1), 2, axis=1)
        y = nnx.relu(unit.bn1(unit.conv1(x), True)) * first[:, None, None]
        y = nnx.relu(unit.bn2(unit.conv2(y), True)) * second[:, None, None]
        return unit.bn3(unit.conv3(y), True)

    def total(f: Any) -> Any:
        return jax.value_and_grad(lambda mask: jnp.sum(jnp.sin(f(mask))))(mask)

    found, expected = total(lambda mask: unit.residual(x, mask, Mode())), total(plainly)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"gate_group": 3}, "3, into which the 4 channels of stage 1 do not divide"),
        ({"gate_group": 0}, "model.gate_group is 0"),
        ({"gate_hidden": 0}, "model.gate_hidden is 0; expected at least 1"),
        ({"gate_prior": 1.0, "gate_scale": False}, "model.gate_scale is False"),
        ({"gate_prior": -1.0}, "model.gate_prior is -1.0; expected at least 0"),
        ({"depth": 15}, "a CIFAR ResNet has depth 6n\\+2"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(ARCHS["single"], **fields)
