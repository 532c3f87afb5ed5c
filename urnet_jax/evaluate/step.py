"""The pure evaluation step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from urnet_jax import streams
from urnet_jax.config import Config, architecture, skips, weighs_only
from urnet_jax.config import network as network_of
from urnet_jax.data import augment
from urnet_jax.nets import network
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.execution import choose
from urnet_jax.nets.gates import draw_kept
from urnet_jax.nets.mode import Execution, Mode
from urnet_jax.nets.network import Tree
from urnet_jax.phases import PHASES
from urnet_jax.streams import Stream
from urnet_jax.xla import sharding
from urnet_jax.xla.compilation import compiler_options

EvalStep = Callable[
    ...,
    dict[str, Bool[Array, " B"] | Float[Array, "B ..."] | Int[Array, " B"]],
]


def make_eval_step(
    config: Config, phase: str = "joint", execution: Execution = "auto", mesh: Mesh | None = None
) -> EvalStep:
    """The jitted evaluation of one batch at one S per sample, gates hard.

    A network that is still in `pretrain` has untrained gates: it is evaluated with all blocks on.
    Under random drop the blocks that an example keeps depend on the seed, its index and S alone.

    Args:
      config: the run's.
      phase: that the weights come from.
      execution: how gated blocks are run.
      mesh: of one axis `data` whose devices share the batch, whose size they divide; each skips
        blocks for its own part. By default everything stays where it is.

    Returns:
      f(params, batch_stats, images, labels, scale, index, offset=None) -> correct [B] (bool, or of
      maps the share of pixels), counts [B, ...] (of the task's measure), loss [B] (the task's,
      nats), gates [B, G], read [B] (whether the image has a label), where labels are classes
      prediction [B] and label [B] and, where the network's own gates decide, gate_logits [B, G];
      with a mesh, the whole batch's on every device. The offset, [B] or for each gate [B, G], is
      part of the logits: a calibration's, say.
    """
    arch, build = network_of(config)
    graph, task, platform = network.graph(arch, build), network.task(arch), sharding.platform(mesh)
    asked = Mode(execution=execution if skips(config, phase) else "dense")

    def eval_step(
        params: Tree, batch_stats: Tree, images: Array, labels: Array, scale: Array, index: Array,
        offset: Array,
    ) -> dict[str, Array]:  # fmt: skip
        pixels = augment.normalize(images, *augment.normalization(config.data.name))
        inputs = gate_inputs(config, phase, scale, index, offset)
        mode = choose(arch, asked, images.shape[0], platform)
        output, _ = network.apply(graph, params, batch_stats, pixels, inputs, mode)
        found = {
            "correct": task.correct(output.prediction, labels),
            "counts": task.counts(output.prediction, labels),
            "loss": task.loss(output.prediction, labels),
            "gates": output.gates,
            "read": (labels >= 0).reshape(len(labels), -1).any(axis=1),
        }
        if labels.ndim == 1:  # Maps are large, and what is measured of them is there.
            found |= {"prediction": task.answer(output.prediction), "label": labels}
        if output.gate_logits is not None:
            found["gate_logits"] = output.gate_logits
        return found

    # Only what the blocks are computed from is split; the few numbers that they come to are
    # gathered, for every host writes or compares them.
    placed: Any = {} if mesh is None else {"out_shardings": sharding.replicated(mesh)}
    of_all: Any = eval_step if mesh is None else _shared(eval_step, mesh)

    def step(*arguments: Any, offset: Array | None = None) -> dict[str, Array]:
        scale = arguments[4]
        return of_all(*arguments, jnp.zeros_like(scale) if offset is None else offset)

    return jax.jit(step, compiler_options=compiler_options(platform), **placed)


def _shared(eval_step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """The evaluation of a batch, of which each device has a part."""
    same, split = P(), P("data")
    return jax.shard_map(
        eval_step, mesh=mesh, in_specs=(same, same) + 5 * (split,), out_specs=split,
        # JAX cannot follow replication through loops that depend on each device's samples.
        check_vma=False,
    )  # fmt: skip


def gate_inputs(
    config: Config, phase: str, scale: Float[Array, " B"], index: Int[Array, " B"],
    offset: Float[Array, " B"] | Float[Array, "B G"] | None = None,
) -> GateInputs:  # fmt: skip
    """What a network of `phase` is tested and served with.

    Nothing is drawn but for random drop, whose draws depend on the seed, each example's `index` and
    S alone; gates beside it are sigmoids, which weigh what it leaves. An offset is added to logits.
    """
    size, arch = index.shape[0], architecture(config)
    num_gates, inputs = arch.num_gates, GateInputs(scale)
    if offset is not None:
        offset = offset.reshape(size, -1)
        inputs = inputs.shifted(jnp.broadcast_to(offset, (size, num_gates)))
    if not (arch.gated and PHASES[phase].own_gates):
        inputs = inputs._replace(given=jnp.ones((size, num_gates)))
    if skips(config, phase) and config.gate.random_drop != "never":
        keys = jax.vmap(jax.random.fold_in, (None, 0))(streams.key(config.seed, Stream.TEST), index)
        sigmoid = jnp.ones((size, num_gates), bool) if weighs_only(config) else None
        inputs = inputs._replace(kept=draw_kept(keys, scale, num_gates), sigmoid=sigmoid)
    return inputs
