"""The network against a second one, written from the papers block by block."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from helpers.resnet_reference import ARCHS, BATCH, Reference, inputs, network, numpy_pad, unstack
from helpers.variables import apply
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.blocks import Block
from urnet_jax.nets.gates import draw_sigmoid
from urnet_jax.nets.mode import Build, Mode
from urnet_jax.nets.residual import StageSpec
from urnet_jax.nets.resnet import ResNet

each_shortcut = pytest.mark.parametrize("name", ["A", "pool", "B", "bottleneck"])
each_mode = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


def without_gates(arch: Architecture) -> tuple[Any, Any, Any]:
    """The plain network with the gated one's weights."""
    _, params, stats = network(arch)
    flat = traverse_util.flatten_dict(params)
    backbone = {path: value for path, value in flat.items() if "gate" not in path}
    graph, own, _ = network(dataclasses.replace(arch, gated=False))
    assert traverse_util.flatten_dict(own).keys() == backbone.keys()
    return graph, traverse_util.unflatten_dict(backbone), stats


@functools.cache
def compiled(arch: Architecture, dtype: str = "float32", **settings: Any) -> Any:
    """f(images, scale, sigmoid, gates) -> logits, gates, batch_stats."""
    graph, params, stats = network(arch, dtype)

    def run(params, stats, images, scale, sigmoid, gates):
        return apply(graph, params, stats, images, scale, sigmoid=sigmoid, gates=gates, **settings)

    jitted = jax.jit(run)

    def call(images: Any = None, scale: Any = None, sigmoid: Any = None, gates: Any = None) -> Any:
        default_images, default_scale = inputs(arch)
        images = default_images if images is None else images
        scale = default_scale if scale is None else scale
        return jitted(params, stats, images, scale, sigmoid, gates)

    return call


def numpy_stride(x: np.ndarray) -> np.ndarray:
    return x[:, ::2, ::2]


def numpy_pool(x: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels; at an odd border, of the pixels that there are."""
    b, h, w, c = x.shape
    out = np.zeros((b, -(-h // 2), -(-w // 2), c), x.dtype)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
    return out


def eager(variables: tuple, images: Any, scale: Any, gates: Any, train: bool) -> Any:
    """One operation at a time: a compiler may not fuse what must agree to the last bit."""
    graph, params, stats = variables
    return apply(graph, params, stats, images, scale, gates=gates, train=train)


@each_mode
@each_shortcut
def test_open_gates_are_exactly_the_plain_network(name: str, train: bool):
    arch = ARCHS[name]
    images, scale = inputs(arch)
    ones = jnp.ones((BATCH, arch.num_blocks))
    logits, gates, stats = eager(network(arch), images, scale, ones, train)
    # A plain network has no use for S, or this would show.
    plain = eager(without_gates(arch), images, jnp.full(BATCH, jnp.nan), None, train)
    np.testing.assert_array_equal(logits, plain[0])
    np.testing.assert_array_equal(gates, ones)
    np.testing.assert_array_equal(plain[1], ones)
    jax.tree.map(np.testing.assert_array_equal, stats, plain[2])


@each_mode
@each_shortcut
def test_closed_gates_are_exactly_the_shortcut_path(name: str, train: bool):
    arch = ARCHS[name]
    (images, scale), zeros = inputs(arch), jnp.zeros((BATCH, arch.num_blocks))
    logits, gates, _ = eager(network(arch), images, scale, zeros, train)
    expected, _ = Reference(arch, train)(images, scale, gates="off")
    # The reference takes its sums in another order.
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gates, zeros)
    # What a residual function computes does not matter in the least.
    graph, params, stats = network(arch)
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
    for path in [path for path in flat if path[0] != "conv1" and path[-2].startswith("conv")]:
        flat[path] = 2 * flat[path]
    other = traverse_util.unflatten_dict(flat)
    changed = eager((graph, other, stats), images, scale, zeros, train)
    np.testing.assert_array_equal(changed[0], logits)
    assert np.ptp(np.asarray(logits), axis=0).min() > 0  # the images do reach the head


@each_mode
@pytest.mark.parametrize("name", ARCHS)
def test_a_network_is_its_blocks_one_by_one(name: str, train: bool):
    arch = ARCHS[name]
    reference = Reference(arch, train)
    expected, _ = reference(*inputs(arch), gates="on")
    logits, gates, stats = compiled(arch, train=train)(gates=jnp.ones((BATCH, arch.num_blocks)))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    stats, before = unstack(stats), unstack(network(arch)[2])
    assert stats.keys() == reference.stats.keys() == before.keys()
    for path, value in stats.items():
        np.testing.assert_allclose(value, reference.stats[path], rtol=1e-4, atol=1e-5)
        assert np.array_equal(value, before[path]) != train, path


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (7, 4), (1, 2)])
def test_shortcuts_against_numpy(size: int, channels: int):
    x = np.random.default_rng(0).normal(size=(2, size, size, channels)).astype(np.float32)
    cases: list[tuple[Any, Any]] = [("A", numpy_stride), ("pool", numpy_pool)]
    for name, pick in cases:
        arch = Architecture("cifar", 8, 5, image_size=8, shortcut=name, gated=False)
        spec = StageSpec("basic", 1, channels, 9, 9, stride=2)
        block = nnx.eval_shape(  # a shortcut without weights needs no values
            lambda arch=arch, spec=spec: Block(arch, spec, Build(), entry=True, rngs=nnx.Rngs(0))
        )
        result = block.shortcut(jnp.asarray(x), Mode())
        np.testing.assert_allclose(result, numpy_pad(pick(x), 9), rtol=1e-5, atol=1e-6)


def test_hard_gates_are_the_sign_of_their_logits():
    arch = ARCHS["A"]
    logits, gates, _ = compiled(arch)()
    never = np.zeros(gates.shape, bool)
    expected, expected_gates = Reference(arch)(*inputs(arch), gates="own", sigmoid=never)
    assert set(np.unique(gates)) == {0.0, 1.0}
    np.testing.assert_array_equal(gates, expected_gates)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("p", "draw"), [(1.0, "gate"), (0.5, "sample")])
def test_drawn_gates_are_sigmoids_of_their_logits(p: float, draw: Any):
    arch, key = ARCHS["B"], jax.random.key(5)
    drawn = np.asarray(draw_sigmoid(key, p, draw, BATCH, arch.num_blocks))
    logits, gates, _ = compiled(arch)(sigmoid=drawn)
    assert drawn.all() if p == 1 else 0 < drawn.mean() < 1
    expected, expected_gates = Reference(arch)(*inputs(arch), gates="own", sigmoid=drawn)
    np.testing.assert_allclose(gates, expected_gates, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert np.all((gates > 0) & (gates < 1), where=drawn)
    assert np.isin(gates, (0, 1)).all(where=~drawn)


@pytest.mark.parametrize("shape", [(), (1,), (BATCH, 1)])
def test_scales_that_are_not_one_per_image_are_an_error(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=rf"expected one S per image, \({BATCH},\)"):
        compiled(ARCHS["A"])(scale=jnp.ones(shape))


def test_scales_mix_in_a_batch():
    arch = ARCHS["A"]
    run, (images, scale) = compiled(arch), inputs(arch)
    same = jnp.broadcast_to(images[:1], images.shape)
    logits, gates, _ = run(same, scale)
    assert len(np.unique(gates, axis=0)) > 1  # S alone changes the path
    one_by_one = [run(same[:1], scale[n : n + 1]) for n in range(BATCH)]
    np.testing.assert_array_equal(gates, np.concatenate([gates for _, gates, _ in one_by_one]))
    alone = np.concatenate([logits for logits, _, _ in one_by_one])
    np.testing.assert_allclose(logits, alone, rtol=1e-5, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch_mates():
    arch = ARCHS["A"]
    run, (images, scale) = compiled(arch), inputs(arch)
    logits, gates, _ = run(images, scale)
    others = run(images.at[1:].multiply(-3.0), scale.at[1:].set(0.0))
    np.testing.assert_array_equal(logits[0], others[0][0])
    np.testing.assert_array_equal(gates[0], others[1][0])
    assert not np.array_equal(logits[1:], others[0][1:])


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    arch = ARCHS["A"]
    # Gates that are given: the nearly closed might open when features are rounded.
    gates = jnp.asarray(np.random.default_rng(1).integers(0, 2, (BATCH, arch.num_blocks)), float)
    exact, _, exact_stats = compiled(arch, train=True)(gates=gates)
    run = compiled(arch, "bfloat16", train=True)
    logits, gates, stats = run(gates=gates)
    assert logits.dtype == gates.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    abstract = nnx.eval_shape(lambda: ResNet(arch, Build("bfloat16"), rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(abstract))} == {jnp.dtype("float32")}
    assert 0 < np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(exact_stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.05, atol=0.02)
