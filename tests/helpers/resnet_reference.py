"""A second network, written from the papers block by block, and the weights of both."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax import lax

from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.cost import sides
from urnet_jax.nets.mode import Build
from urnet_jax.nets.network import found
from urnet_jax.nets.residual import Residual, StageSpec

BATCH = 6
ARCHS = {
    "A": Architecture("cifar", 20, 5, image_size=9, width=4),  # 9, 5 and 3 px: odd
    "pool": Architecture("cifar", 14, 5, image_size=8, width=4, shortcut="pool"),
    "B": Architecture("cifar", 14, 5, image_size=8, width=4, shortcut="B"),
    "basic": Architecture("imagenet", 18, 5, image_size=32, width=4, shortcut="B"),
    "bottleneck": Architecture("imagenet", 50, 5, image_size=64, width=4, shortcut="B"),
}


@functools.cache
def network(arch: Any, dtype: str = "float32") -> tuple[Any, Any, Any]:
    """Graph, params and batch_stats."""
    make = found(arch.network)
    abstract = nnx.eval_shape(lambda: make(arch, Build(dtype), rngs=nnx.Rngs(0)))
    graph, params, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    return graph, filled(params), filled(stats)


def filled(shapes: nnx.State) -> Any:
    """Norms and gates as far from trivial as trained ones."""
    rng = np.random.default_rng(7)

    def fill(path: tuple, leaf: Any) -> jax.Array:
        return jnp.asarray(not_trivial(path[-1].key, leaf.shape, rng), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, nnx.to_pure_dict(shapes))


def not_trivial(kind: str, size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """What a kernel, a bias, or a scale, mean or var of BatchNorm might be after training."""
    if kind == "kernel":
        return rng.normal(size=size) * math.sqrt(2 / math.prod(size[-4:-1]))
    if kind in ("scale", "var"):
        return rng.uniform(*{"scale": (0.3, 0.9), "var": (0.7, 1.5)}[kind], size)
    return rng.normal(0, 0.1, size)


@functools.cache
def inputs(arch: Residual) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(3)
    shape = (BATCH, *sides(arch.image_size), arch.image_channels)
    return jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.linspace(0.1, 1, BATCH)


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

    def __init__(self, arch: Any, train: bool = False) -> None:
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


def numpy_pad(x: np.ndarray, channels: int) -> np.ndarray:
    extra = channels - x.shape[-1]
    out = np.zeros((*x.shape[:-1], channels), x.dtype)
    out[..., extra // 2 : extra // 2 + x.shape[-1]] = x
    return out
