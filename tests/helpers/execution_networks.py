"""Networks of two stages, and how the tests of executions run them."""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.resnet_reference import not_trivial
from helpers.variables import apply
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.cost import sides
from urnet_jax.nets.mode import Build, Execution
from urnet_jax.nets.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class TwoStages(Architecture):
    @property
    def stages(self) -> Any:
        return super().stages[:2]


ARCHS = {
    "A": TwoStages("cifar", 20, 5, image_size=9, width=4),  # 9 and 5 px: odd
    "pool": TwoStages("cifar", 14, 5, image_size=8, width=4, shortcut="pool", gate_norm=True),
    "B": TwoStages("cifar", 14, 5, image_size=8, width=4, shortcut="B"),
    "external": TwoStages("cifar", 14, 5, image_size=8, width=4, gate_network="external"),
    "basic": TwoStages("imagenet", 18, 5, image_size=16, width=4, shortcut="B"),
    "bottleneck": TwoStages("imagenet", 50, 5, image_size=16, width=4, shortcut="B"),
}
SPARSE: tuple[Execution, ...] = ("cond", "compact", "pieces", "filters")
TOLERANCE = 1e-5

# Every piece and every capacity of every block is a program of its own: optimised, they would
# compile five times as long.
QUICK: Any = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

each_execution = pytest.mark.parametrize("how", SPARSE)

traces = collections.Counter()


@functools.cache
def network(name: str, dtype: str = "float32") -> tuple[Any, Any, Any]:
    """Graph, params and batch_stats. Norms are not trivial; gates open for S of about 0.5 or more.

    At which S exactly, the features decide: so blocks differ in the samples that they run.
    """
    abstract = nnx.eval_shape(lambda: ResNet(ARCHS[name], Build(dtype), rngs=nnx.Rngs(0)))
    graph, params, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    rng = np.random.default_rng(7)

    def fill(path: tuple, leaf: Any) -> jax.Array:
        layer, kind, size = path[-2].key, path[-1].key, leaf.shape
        if (layer, kind) == ("fc1", "kernel"):  # [..., 2C, hidden]: features, then S
            values = rng.normal(0, 0.2, size)
            values[..., size[-2] // 2 :, :] = 2 / size[-2]
        elif layer == "of_scale":
            values = np.ones(size)
        elif layer == "fc2":
            # External gates differ in nothing else.
            bias = -0.5 if size[-1] == 1 else np.linspace(-0.9, -0.1, size[-1])
            values = (
                np.full(size, 1 / size[-2]) if kind == "kernel" else np.broadcast_to(bias, size)
            )
        else:
            values = not_trivial(kind, size, rng)
        return jnp.asarray(values, jnp.float32)

    filled = [
        jax.tree_util.tree_map_with_path(fill, nnx.to_pure_dict(tree)) for tree in (params, stats)
    ]
    return graph, *filled


@functools.cache
def compiled(name: str, how: Execution, dtype: str = "float32") -> Any:
    """f(params, batch_stats, images, scale, gates) -> logits, gates."""
    graph = network(name, dtype)[0]

    def run(params: Any, stats: Any, images: Any, scale: Any, gates: Any) -> Any:
        traces[name, how, dtype, len(images), gates is None] += 1
        return apply(graph, params, stats, images, scale, gates=gates, execution=how)[:2]

    return jax.jit(run, compiler_options=QUICK)


def run(
    name: str, how: Execution, images: Any, scale: Any, gates: Any = None, params: Any = None,
    dtype: str = "float32",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Logits and gates; None stands for the network's own gates and params."""
    _, own, stats = network(name, dtype)
    arguments = images, jnp.asarray(scale, jnp.float32), gates
    logits, gates = compiled(name, how, dtype)(params or own, stats, *arguments)
    return np.asarray(logits), np.asarray(gates)


def images_of(name: str, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Faint and bright images, whose gates differ."""
    arch = ARCHS[name]
    shape = batch, *sides(arch.image_size), arch.image_channels
    return (rng.normal(size=shape) * rng.uniform(0.1, 3, (batch, 1, 1, 1))).astype(np.float32)


def assert_same(actual: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert np.isfinite(actual).all() and np.isfinite(expected).all()
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def gates_of(counts: list[int], batch: int, rng: np.random.Generator) -> np.ndarray:
    """Hard gates [B, N]; a block's samples are drawn at random."""
    ranks = rng.permuted(np.tile(np.arange(batch), (len(counts), 1)), axis=1)
    return (ranks < np.array(counts)[:, None]).T.astype(np.float32)
