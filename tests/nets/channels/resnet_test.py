"""A network that masks channels, against one that has only those which gates open."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.channel_networks import ARCHS, Pruned
from helpers.execution_networks import QUICK, each_execution
from helpers.resnet_reference import BATCH, inputs, network
from helpers.variables import apply
from urnet_jax.nets.channels.architecture import ChannelGated
from urnet_jax.nets.channels.resnet import ChannelResNet
from urnet_jax.nets.contract import GateInputs, Unit
from urnet_jax.nets.cost import macs_per_sample
from urnet_jax.nets.mode import Execution, Mode

each_arch = pytest.mark.parametrize("name", ARCHS)


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
