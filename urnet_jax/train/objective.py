"""What a training step makes small: the task's loss, and what gates are asked beside it.

By default the network is run once for a batch, as its gates decide (URNet, equation 5). With
`distill.weight` it is run twice in one call, whole and resized: the whole network learns from the
labels, and the resized one from what the whole one says (Adaptive Depth Networks, 2312.16392).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from urnet_jax.config import Config, num_groups
from urnet_jax.config import network as network_of
from urnet_jax.data import augment
from urnet_jax.nets import network
from urnet_jax.nets.contract import Description, GateInputs, Output
from urnet_jax.nets.gates import activate, prior
from urnet_jax.nets.mode import Mode
from urnet_jax.nets.network import Tree
from urnet_jax.phases import PHASES
from urnet_jax.train import draws, losses, shaping
from urnet_jax.train.state import join

Batch = Mapping[str, Any]

OPEN = 1e6
"""A logit that opens a gate and leaves it no gradient."""

GUARD_ENDS = 1 / 3
"""Share of the training of gates after which the guard has let go."""


class Along(NamedTuple):
    """What a loss depends on besides weights and a batch.

    Attributes:
      progress: of the training of gates, 0 to 1.
      multipliers: what usage beyond S costs at each of `scale.anchors`; None without a controller.
    """

    progress: Float[Array, ""]
    multipliers: Float[Array, " K"] | None


Objective = Callable[
    [Tree, Along, Tree, Tree, Batch], tuple[Float[Array, ""], tuple[Tree, dict[str, Array]]]
]


def make_loss(config: Config, phase: str, platform: str) -> Objective:
    """f(frozen, along, trained, batch_stats, batch) -> loss, (batch_stats, outputs)."""
    arch, build = network_of(config)
    graph, task, moves = network.graph(arch, build), network.task(arch), PHASES[phase]
    own_gates = arch.gated and moves.own_gates
    twice = own_gates and config.distill.weight > 0
    heeds = own_gates or draws.drops_in_training(config, phase)
    mode = Mode(
        batch_norm="batch" if moves.moves_rest else "running",
        gates_batch_norm="batch" if moves.moves_gates else "running",
        straight_through=config.gate.straight_through,
        temperature=config.gate.temperature,
        unroll=use_unroll(config, platform),
    )

    def loss_fn(
        frozen: Tree, along: Along, trained: Tree, batch_stats: Tree, batch: Batch
    ) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
        labels, inputs, images = batch["label"], batch["inputs"], _prepare(config, batch)
        if twice:
            images, run = jnp.repeat(images, 2, axis=0), with_whole(inputs, arch.num_gates)
        else:
            run = inputs
        output, batch_stats = network.apply(
            graph, join(trained, frozen), batch_stats, images, run, mode
        )
        whole, distance = output, jnp.zeros(())
        if twice:
            whole, output = of_half(output, 0), of_half(output, 1)
            teacher = lax.stop_gradient(whole.prediction)
            distance = task.distance(output.prediction, teacher, config.distill.temperature)
        of_task, of_whole = (task.loss(o.prediction, labels) for o in (output, whole))
        asked = Asked.of(config, arch, output, inputs, along) if own_gates else Asked()
        aux: Any = sum(output.aux.values(), jnp.zeros(()))
        loss = of_task.mean() + asked.weighed(config) + aux
        if whole.auxiliary is not None:
            of_auxiliary = task.loss(whole.auxiliary, labels).mean()
            loss += getattr(arch, "auxiliary_weight", 0.0) * of_auxiliary
        if twice:
            # The labels' part fades for the resized network, and stays for the whole one.
            loss += (_fading(config, along.progress) - 1) * of_task.mean() + of_whole.mean()
            loss += config.distill.weight * distance.mean()
        right = [task.correct(o.prediction, labels).astype(jnp.float32) for o in (output, whole)]
        return loss, (batch_stats, {
            "loss": loss,
            "task_loss": of_task,
            "distill_loss": distance,
            "scale_loss": jnp.asarray(asked.penalty),
            "aux_loss": aux,
            "correct": right[0],
            "correct_whole": right[1],
            "usage": usage_of(config, arch, output.gates),
            "scale": inputs.scale if heeds else jnp.ones_like(inputs.scale),
            "gaps": jnp.asarray(asked.gaps),
            "asked": jnp.asarray(asked.scale),
        })  # fmt: skip

    return loss_fn


class Asked(NamedTuple):
    """What gates are asked, of one batch: to use what S says.

    Attributes:
      penalty: the scale loss.
      price: what a controller's multipliers make of usage beyond S.
      guard: distance of each gate from what the prior alone would have it do; falls to 0.
      shaping: distance of each gate's form over the batch from its Beta distribution, weighed.
      l0: the share of gates that are expected to be open, weighed.
      gaps: usage beyond S, of samples or groups.
      scale: the S of those.
    """

    penalty: Any = np.float32(0)
    price: Any = np.float32(0)
    guard: Any = np.float32(0)
    shaping: Any = np.float32(0)
    l0: Any = np.float32(0)
    gaps: Any = np.zeros(0, np.float32)
    scale: Any = np.zeros(0, np.float32)

    @classmethod
    def of(
        cls, config: Config, arch: Description, output: Output, inputs: GateInputs, along: Along
    ) -> "Asked":
        """What the gates of `output` make of `inputs`."""
        assert output.gate_logits is not None
        gates, section = output.gates, config.scale
        if section.usage == "step":
            soft = output.gate_logits / config.gate.temperature
            gates = activate(soft, None, straight_through=True)
        size = len(inputs.scale)
        groups = num_groups(config, size) if section.loss == "group" else None
        gaps = losses.gaps_of(usage_of(config, arch, gates), inputs.scale, groups)
        scale = inputs.scale if groups is None else inputs.scale.reshape(groups, -1).mean(axis=1)
        price = held_to = shaped = sparse = np.float32(0)
        if along.multipliers is not None:
            anchor = losses.anchor_of(scale, section.anchors)
            price = losses.price(gaps, along.multipliers, anchor)
        if section.guard:
            soft = jax.nn.sigmoid(output.gate_logits)
            target = jax.nn.sigmoid(prior(arch, inputs.scale))
            held = jnp.maximum(0.0, 1 - along.progress / GUARD_ENDS)
            held_to = held * losses.guard(soft, target, groups)
        if config.shaping.weight:
            shaped = shaping.of_gates(config, output.gate_logits, inputs.scale, along.progress)
        if config.l0.weight:
            sparse = config.l0.weight * risen(config, along.progress)
            sparse = sparse * losses.expected_open(output.gate_logits)
        return cls(losses.scale_loss(gaps), price, held_to, shaped, sparse, gaps, scale)

    def weighed(self, config: Config) -> Any:
        """Their sum."""
        section = config.scale
        held = section.beta * self.penalty + self.price + section.guard * self.guard
        return held + self.shaping + self.l0


def usage_of(config: Config, arch: Description, gates: Float[Array, "B G"]) -> Float[Array, " B"]:
    """What S is a share of: gates, or FLOPs, `scale.of`."""
    return arch.cost.share(gates) if config.scale.of == "flops" else gates.mean(axis=1)


def with_whole(inputs: GateInputs, num_gates: int) -> GateInputs:
    """Inputs for twice as many samples: each one whole, with S = 1 and all gates open, then as is.

    One beside the other, so that devices which share the batch exchange nothing.
    """
    size = len(inputs.scale)
    offset = jnp.zeros((size, num_gates)) if inputs.offset is None else inputs.offset
    whole = {"scale": 1.0, "sigmoid": False, "noise": 0.0, "offset": OPEN, "kept": 1.0}

    def beside(name: str, own: Array) -> Array:
        both = jnp.stack([jnp.full_like(own, whole[name]), own], axis=1)
        return both.reshape(2 * size, *own.shape[1:])

    fields = inputs._replace(offset=offset)._asdict().items()
    return GateInputs(**{name: beside(name, own) for name, own in fields if own is not None})


def of_half(output: Output, which: int) -> Output:
    """The output of every whole (0) or every resized (1) sample of `with_whole`."""
    of_samples: Any = dataclasses.replace(output, aux={})
    half = jax.tree.map(lambda x: x[which::2], of_samples)
    return dataclasses.replace(half, aux=output.aux)


def risen(config: Config, progress: Array) -> Array:
    """How much of the weight of the L0 loss is there: from `l0.begins` it rises to `l0.full`."""
    section = config.l0
    between = max(section.full - section.begins, 1e-9)
    rising = jnp.clip((progress - section.begins) / between, 0.0, 1.0)
    return jnp.where(progress >= section.full, 1.0, rising)


def _fading(config: Config, progress: Array) -> Array | float:
    """The weight of the labels for the resized network."""
    section = config.distill
    left = 1 - progress / section.fades_by if section.fades_by else 1.0
    return section.cross_entropy * jnp.maximum(0.0, left)


def use_unroll(config: Config, platform: str) -> bool:
    """Whether training unrolls a stage's blocks; XLA:CPU differentiates loops slowly."""
    choice = config.model.scan
    return platform == "cpu" if choice == "auto" else choice == "unroll"


def _prepare(config: Config, batch: Batch) -> Any:
    images = augment.augment_images(
        batch["image"], batch["index"], batch["epoch"],
        seed=config.seed, mode=config.data.augment, padding=config.data.crop_padding,
    )  # fmt: skip
    return augment.normalize(images, *augment.normalization(config.data.name))
