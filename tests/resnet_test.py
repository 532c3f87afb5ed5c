"""The network against a second one, written from the papers block by block."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from jax import lax

from urnet_jax import optimizer, state
from urnet_jax.architecture import Architecture, StageSpec
from urnet_jax.blocks import Block, GateInputs, Stage
from urnet_jax.gates import draw_sigmoid
from urnet_jax.losses import cross_entropy
from urnet_jax.resnet import ResNet

BATCH = 6
ARCHS = {
    "A": Architecture("cifar", 20, 5, image_size=9, width=4),  # 9, 5 and 3 px: odd
    "pool": Architecture("cifar", 14, 5, image_size=8, width=4, shortcut="pool"),
    "B": Architecture("cifar", 14, 5, image_size=8, width=4, shortcut="B"),
    "basic": Architecture("imagenet", 18, 5, image_size=32, width=4, shortcut="B"),
    "bottleneck": Architecture("imagenet", 50, 5, image_size=64, width=4, shortcut="B"),
}
each_shortcut = pytest.mark.parametrize("name", ["A", "pool", "B", "bottleneck"])
each_mode = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


@functools.cache
def network(arch: Architecture, dtype: str = "float32") -> tuple[Any, Any, Any]:
    """Graph, params and batch_stats."""
    abstract = nnx.eval_shape(lambda: ResNet(arch, dtype=dtype, rngs=nnx.Rngs(0)))
    graph, params, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    return graph, filled(params), filled(stats)


def filled(shapes: nnx.State) -> Any:
    """Norms and gates as far from trivial as trained ones."""
    rng = np.random.default_rng(7)

    def fill(path: tuple, leaf: Any) -> jax.Array:
        kind, size = path[-1].key, leaf.shape
        if kind == "kernel":
            values = rng.normal(size=size) * math.sqrt(2 / math.prod(size[-4:-1]))
        elif kind in ("scale", "var"):
            values = rng.uniform(*{"scale": (0.3, 0.9), "var": (0.7, 1.5)}[kind], size)
        else:
            values = rng.normal(0, 0.1, size)
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, nnx.to_pure_dict(shapes))


def new_stage(arch: Architecture, spec: StageSpec, gate_bias: float = 0.0) -> Stage:
    dtype = jnp.dtype("float32")
    return Stage(arch, spec, dtype=dtype, gate_bias=gate_bias, rngs=nnx.Rngs(0))


def without_gates(arch: Architecture) -> tuple[Any, Any, Any]:
    """The plain network with the gated one's weights."""
    _, params, stats = network(arch)
    flat = traverse_util.flatten_dict(params)
    backbone = {path: value for path, value in flat.items() if "gate" not in path}
    graph, own, _ = network(dataclasses.replace(arch, gated=False))
    assert traverse_util.flatten_dict(own).keys() == backbone.keys()
    return graph, traverse_util.unflatten_dict(backbone), stats


@functools.cache
def inputs(arch: Architecture) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(3)
    shape = (BATCH, arch.image_size, arch.image_size, arch.image_channels)
    return jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.linspace(0.1, 1, BATCH)


@functools.cache
def compiled(arch: Architecture, dtype: str = "float32", **settings: Any) -> Any:
    """f(images, scale, use_sigmoid, gates) -> logits, gates, batch_stats."""
    graph, params, stats = network(arch, dtype)

    def run(params, stats, images, scale, use_sigmoid, gates):
        return state.apply(
            graph, params, stats, images, scale, use_sigmoid=use_sigmoid, gates=gates, **settings
        )

    jitted = jax.jit(run)

    def call(
        images: Any = None, scale: Any = None, use_sigmoid: Any = None, gates: Any = None
    ) -> Any:
        default_images, default_scale = inputs(arch)
        images = default_images if images is None else images
        scale = default_scale if scale is None else scale
        return jitted(params, stats, images, scale, use_sigmoid, gates)

    return call


def unstack(tree: Any) -> dict[str, Any]:
    """Arrays by name; block n of stage1 is stage1/n, whether entry or one of the stacked body."""
    flat = {}
    leaves: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    for path, value in leaves.items():
        if "/body/" in path:
            flat |= {path.replace("body", str(n + 1)): v for n, v in enumerate(value)}
        else:
            flat[path.replace("entry", "0")] = value
    return flat


class Reference:
    """A ResNet with blocks one after another, F only where a block runs, and its BatchNorm."""

    def __init__(self, arch: Architecture, train: bool = False) -> None:
        _, params, stats = network(arch)
        self.arch, self.train = arch, train
        self.params, self.stats = unstack(params), unstack(stats)

    def conv(self, x: Any, name: str, stride: int = 1) -> Any:
        kernel = self.params[f"{name}/kernel"]
        around = kernel.shape[0] // 2
        return lax.conv_general_dilated(
            x, jnp.asarray(kernel), (stride, stride), [(around, around)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    def norm(self, x: Any, name: str) -> Any:
        mean, var = self.stats[f"{name}/mean"], self.stats[f"{name}/var"]
        if self.train:
            batch_mean = jnp.mean(x, (0, 1, 2))
            batch_var = jnp.mean(x * x, (0, 1, 2)) - batch_mean * batch_mean
            self.stats[f"{name}/mean"] = 0.9 * mean + 0.1 * batch_mean
            self.stats[f"{name}/var"] = 0.9 * var + 0.1 * batch_var
            mean, var = batch_mean, batch_var
        factor = lax.rsqrt(var + 1e-5) * self.params[f"{name}/scale"]
        return (x - mean) * factor + self.params[f"{name}/bias"]

    def linear(self, x: Any, name: str) -> Any:
        return x @ self.params[f"{name}/kernel"] + self.params[f"{name}/bias"]

    def gate_logit(self, x: Any, scale: Any, name: str) -> Any:
        pooled = jnp.mean(x, (1, 2))
        asked = jnp.stack([scale] * pooled.shape[1], axis=1)
        hidden = self.linear(jnp.concatenate([pooled, asked], axis=1), f"{name}/fc1")
        return self.linear(jnp.maximum(hidden, 0), f"{name}/fc2")[:, 0]

    def shortcut(self, x: Any, name: str, spec: StageSpec) -> Any:
        if self.arch.shortcut == "B":
            x = self.conv(x, f"{name}/downsample_conv", spec.stride)
            return self.norm(x, f"{name}/downsample_bn")
        if self.arch.shortcut == "pool":  # of features of even size
            window = (1, 2, 2, 1)
            x = lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / 4
        else:
            x = x[:, ::2, ::2]
        return numpy_pad(np.asarray(x), spec.out_channels)

    def residual(self, x: Any, name: str, spec: StageSpec, stride: int) -> Any:
        strides = [stride, 1] if spec.block == "basic" else [1, stride, 1]
        for i, s in enumerate(strides, start=1):
            x = self.norm(self.conv(x, f"{name}/conv{i}", s), f"{name}/bn{i}")
            x = jnp.maximum(x, 0) if i < len(strides) else x
        return x

    def __call__(self, images: Any, scale: Any, gates: str, sigmoid: Any = None) -> Any:
        """Logits and gates, which are all `on`, all `off` (F is not computed) or the `own`."""
        stride = 1 if self.arch.family == "cifar" else 2
        x = jnp.maximum(self.norm(self.conv(images, "conv1", stride), "bn1"), 0)
        if self.arch.family == "imagenet":
            around = ((0, 0), (1, 1), (1, 1), (0, 0))
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)
        used = []
        for i, spec in enumerate(self.arch.stages, start=1):
            for n in range(spec.num_blocks):
                name = f"stage{i}/{n}"
                entry = n == 0 and (spec.stride > 1 or spec.in_channels != spec.out_channels)
                y = self.shortcut(x, name, spec) if entry else x
                if gates != "off":
                    f = self.residual(x, name, spec, spec.stride if entry else 1)
                    if gates == "own":
                        logit = self.gate_logit(x, scale, f"{name}/gate")
                        draw = sigmoid[:, len(used)]
                        gate = jnp.where(draw, 1 / (1 + jnp.exp(-logit)), logit >= 0)
                        used.append(gate)
                        f = gate[:, None, None, None] * f
                    y = y + f
                x = jnp.maximum(y, 0)
        logits = self.linear(jnp.mean(x, (1, 2)), "fc")
        return logits, jnp.stack(used, axis=1) if used else None


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


def numpy_pad(x: np.ndarray, channels: int) -> np.ndarray:
    extra = channels - x.shape[-1]
    out = np.zeros((*x.shape[:-1], channels), x.dtype)
    out[..., extra // 2 : extra // 2 + x.shape[-1]] = x
    return out


def eager(variables: tuple, images: Any, scale: Any, gates: Any, train: bool) -> Any:
    """One operation at a time: a compiler may not fuse what must agree to the last bit."""
    graph, params, stats = variables
    return state.apply(graph, params, stats, images, scale, gates=gates, train=train)


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
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(gates, zeros)
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
        dtype = jnp.dtype("float32")
        block = nnx.eval_shape(  # a shortcut without weights needs no values
            lambda arch=arch, spec=spec, dtype=dtype: Block(
                arch, spec, entry=True, dtype=dtype, gate_bias=0.0, rngs=nnx.Rngs(0)
            )
        )
        result = block.shortcut_path(jnp.asarray(x), train=False)
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
    logits, gates, _ = compiled(arch)(use_sigmoid=drawn)
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
    abstract = nnx.eval_shape(lambda: ResNet(arch, dtype="bfloat16", rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(abstract))} == {jnp.dtype("float32")}
    assert 0 < np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(exact_stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.05, atol=0.02)


def test_a_loop_has_the_gradient_of_the_unrolled_blocks():
    spec = StageSpec("basic", 3, 4, 8, 8, stride=2)
    arch = Architecture("cifar", 20, 5, image_size=8, width=4)
    abstract = nnx.eval_shape(lambda: new_stage(arch, spec))
    graph, params, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    params, stats = filled(params), filled(stats)
    x, scale = jnp.abs(inputs(ARCHS["B"])[0][..., :1]) * jnp.ones(4), inputs(arch)[1]

    def loss(params: Any, unroll: bool) -> jax.Array:
        stage = nnx.merge(graph, nnx.State(params), nnx.State(stats))
        always = jnp.ones((3, BATCH), bool)
        settings: Any = {"train": True, "unroll": unroll, "execution": "dense"}
        given = GateInputs(always, None, None, None)
        y, _, (gates, _) = stage(x, None, scale, given, straight_through=False, **settings)
        return jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y) + jnp.sum(gates)

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    loop, unrolled = (unstack({"stage": grad(params, unroll)}) for unroll in (False, True))
    assert len(loop) == 3 * 10  # two convolutions, two norms and a gate
    for path, expected in unrolled.items():
        error = np.abs(loop[path] - expected).max()
        assert 0 < np.abs(expected).max() and error <= 1e-4 * np.abs(expected).max(), path


def test_the_cross_entropy_reaches_every_gate_through_its_sigmoid():
    arch = ARCHS["B"]
    graph, params, stats = network(arch)
    gates, backbone = optimizer.split_trained(params, "gates")

    @jax.jit
    @jax.grad
    def gradient(gates: Any) -> jax.Array:
        logits, _, _ = state.apply(
            graph, optimizer.join(gates, backbone), stats, *inputs(arch),
            use_sigmoid=jnp.ones((BATCH, arch.num_blocks), bool),
        )  # fmt: skip
        return cross_entropy(logits, jnp.arange(BATCH) % 5).mean()

    biases = {
        path: float(value[0])
        for path, value in unstack(gradient(gates)).items()
        if path.endswith("gate/fc2/bias")
    }
    assert len(biases) == arch.num_blocks
    assert min(map(abs, biases.values())) > 1e-5


def test_initial_weights():
    arch = Architecture("cifar", 20, 10, image_size=8)
    spec = StageSpec("basic", 3, 8, 16, 16, stride=2)
    params = jax.jit(lambda: nnx.state(new_stage(arch, spec, gate_bias=0.7), nnx.Param))()
    kernels = []
    for path, value in nnx.to_flat_state(params):
        if path[-3:] == ("gate", "fc2", "bias"):
            np.testing.assert_array_equal(value[...], np.full(value.shape, 0.7, np.float32))
        elif path[-1] == "scale":
            np.testing.assert_array_equal(value[...], 1)
        elif path[-2] in ("conv1", "conv2"):
            kernels += list(value[...]) if path[0] == "body" else [value[...]]
    assert len(kernels) == 6
    for kernel in kernels:  # He et al. 2015, equation 14; 3x3 positions, 16 channels
        assert np.std(kernel) == pytest.approx(math.sqrt(2 / (9 * 16)), rel=0.1)
    for one, other in itertools.combinations(kernels, 2):
        if one.shape == other.shape:  # no block is a copy of another
            assert abs(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1]) < 0.1
