"""The pure evaluation step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt8

from urnet_jax.config import Config, architecture, heeds_scale
from urnet_jax.data import augment
from urnet_jax.nets.architecture import Execution
from urnet_jax.nets.execution import choose
from urnet_jax.train import draws
from urnet_jax.train.losses import cross_entropy
from urnet_jax.train.state import Tree, apply, network_graph
from urnet_jax.xla import sharding
from urnet_jax.xla.compilation import compiler_options

EvalStep = Callable[
    [Tree, Tree, UInt8[Array, "B H W C"], Int[Array, " B"], Float[Array, " B"], Int[Array, " B"]],
    dict[str, Bool[Array, " B"] | Float[Array, "B ..."] | Int[Array, " B"]],
]


def make_eval_step(
    config: Config, phase: str = "joint", execution: Execution = "auto", mesh: Mesh | None = None,
    with_gate_logits: bool = False,
) -> EvalStep:  # fmt: skip
    """The jitted evaluation of one batch at one S per sample, gates hard (p = 0).

    A network that is still in `pretrain` has untrained gates: it is evaluated with all blocks on.
    Under random drop the blocks that an example keeps depend on the seed, its index and S alone.

    Args:
      config: the run's.
      phase: that the weights come from.
      execution: how gated blocks are run, see `architecture.Execution`.
      mesh: of one axis `data` whose devices share the batch, whose size they divide; each skips
        blocks for its own part. By default everything stays where it is.
      with_gate_logits: also gives gate_logits [B, N], of a gated network after `pretrain`.

    Returns:
      f(params, batch_stats, images, labels, scale, index) -> correct [B] (bool), prediction [B],
      loss [B] (cross entropy, nats), gates [B, N], label [B]; with a mesh, the whole batch's on
      every device.
    """
    graph, num_blocks = network_graph(config), architecture(config).num_blocks
    gated, platform = config.model.gated and phase != "pretrain", sharding.platform(mesh)
    skips = heeds_scale(config, phase)

    def eval_step(
        params: Tree, batch_stats: Tree, images: Array, labels: Array, scale: Array, index: Array
    ) -> dict[str, Array]:
        logits, gates, *gate_logits, _ = apply(
            graph, params, batch_stats,
            augment.normalize(images, *augment.normalization(config.data.name)), scale,
            gates=None if gated else jnp.ones((images.shape[0], num_blocks)),
            execution=choose(execution, images.shape[0], platform) if skips else "dense",
            with_gate_logits=with_gate_logits and gated,
            **draws.for_test(config, phase, scale, index),
        )  # fmt: skip
        prediction = logits.argmax(-1).astype(jnp.int32)
        return {
            "correct": prediction == labels,
            "prediction": prediction,
            "loss": cross_entropy(logits, labels),
            "gates": gates,
            "label": labels,
            **({"gate_logits": gate_logits[0]} if gate_logits else {}),
        }

    placed: Any = {}
    if mesh is not None:
        same, split = P(), P("data")
        eval_step = jax.shard_map(
            eval_step, mesh=mesh, in_specs=(same, same) + 4 * (split,), out_specs=split,
            # JAX cannot follow replication through loops that depend on each device's samples.
            check_vma=False,
        )  # fmt: skip
        # Only what the blocks are computed from is split; the few numbers that they come to are
        # gathered, for every host writes or compares them.
        placed = {"out_shardings": sharding.replicated(mesh)}
    return jax.jit(eval_step, compiler_options=compiler_options(platform), **placed)
