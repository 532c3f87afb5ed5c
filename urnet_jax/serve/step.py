"""The compiled function behind a predictor: pixels and S to classes, probabilities and gates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from urnet_jax.config import Config, skips
from urnet_jax.config import network as network_of
from urnet_jax.data import augment
from urnet_jax.evaluate.step import gate_inputs
from urnet_jax.nets import network
from urnet_jax.nets.contract import Description
from urnet_jax.nets.cost import sides
from urnet_jax.nets.execution import choose
from urnet_jax.nets.mode import Execution, Mode
from urnet_jax.nets.network import Tree
from urnet_jax.xla import sharding
from urnet_jax.xla.compilation import compiler_options

CLOSED = -1e9
"""Added to gates' logits it closes them: what pads a batch skips every block."""

Answer = dict[str, np.ndarray]


def compile_step(
    config: Config, phase: str, variables: tuple[Tree, Tree], batch_size: int,
    execution: Execution, mesh: Mesh | None,
) -> Callable[..., Answer]:  # fmt: skip
    """Compiles the network for batches of one size.

    Args:
      config: the run's.
      phase: that the weights come from.
      variables: params and batch_stats, where they lie.
      batch_size: of all devices.
      execution: how gated blocks are run.
      mesh: of one axis `data`, whose devices share a batch; by default there is one device.

    Returns:
      f(images [B, H, W, C] float32, scale [B], offset [B]) -> `classes` [B], `probabilities`
      [B, K] and `gates` [B, G]; it never compiles again.
    """
    arch, build = network_of(config)
    graph, platform = network.graph(arch, build), sharding.platform(mesh)
    asked = Mode(execution=execution if skips(config, phase) else "dense")

    def step(
        params: Tree, batch_stats: Tree, images: Float[Array, "B H W C"],
        scale: Float[Array, " B"], offset: Float[Array, " B"],
    ) -> dict[str, Array]:  # fmt: skip
        size = images.shape[0]
        pixels = augment.normalize(images, *augment.normalization(config.data.name))
        inputs = gate_inputs(config, phase, scale, jnp.zeros(size, jnp.int32), offset)
        mode = choose(arch, asked, size, platform)
        output, _ = network.apply(graph, params, batch_stats, pixels, inputs, mode)
        probabilities = jax.nn.softmax(output.prediction.astype(jnp.float32))
        return {
            "classes": output.prediction.argmax(-1).astype(jnp.int32),
            "probabilities": probabilities,
            "gates": output.gates,
        }

    of_all: Any = step
    if mesh is not None:
        same, split = P(), P("data")
        of_all = jax.shard_map(
            step, mesh=mesh, in_specs=(same, same, split, split, split), out_specs=split,
            # JAX cannot follow replication through loops that depend on each device's samples.
            check_vma=False,
        )  # fmt: skip
    place = None if mesh is None else NamedSharding(mesh, P("data"))
    compiled = _compiled(of_all, arch, variables, batch_size, platform, place)

    def answer(images: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> Answer:
        inputs = images, scale, offset
        inputs = inputs if place is None else jax.device_put(inputs, place)
        return jax.device_get(compiled(*variables, *inputs))

    return answer


def _compiled(
    step: Callable[..., Any], arch: Description, variables: tuple[Tree, Tree], batch_size: int,
    platform: str, place: NamedSharding | None,
) -> Callable[..., Any]:  # fmt: skip
    """The step for arguments of these shapes, and no others."""

    def of(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32, sharding=place)

    height, width = sides(arch.image_size)
    shapes = of(height, width, arch.image_channels), of(), of()
    jitted = jax.jit(step, compiler_options=compiler_options(platform))
    return jitted.lower(*variables, *shapes).compile()
