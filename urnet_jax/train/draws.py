"""What training draws for a batch: its scales S, and what decides its gates at random."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from urnet_jax.config import Config, architecture, num_groups, phases_to_run, weighs_only
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.gates import draw_kept, draw_noise, draw_sigmoid
from urnet_jax.phases import PHASES
from urnet_jax.train.optimizer import num_steps

Draw = Callable[[Key[Array, ""], Int[Array, ""], int], GateInputs]


def for_training(config: Config, phase: str, steps_per_epoch: float) -> Draw:
    """What is drawn for the batches of a phase.

    Returns:
      f(key, phase_step, B) -> inputs of the gates; `key` is the step's own. In a phase without
      gates of its own all are given, and are 1.
    """
    arch, section, gate = architecture(config), config.scale, config.gate
    num_gates, behind = arch.num_gates, progress(config, phase, steps_per_epoch)
    own_gates = arch.gated and PHASES[phase].own_gates
    probability = 1.0 if weighs_only(config) else gate.sigmoid_probability

    def draw(key: Key[Array, ""], phase_step: Int[Array, ""], size: int) -> GateInputs:
        scale_key, sigmoid_key, noise_key, kept_key = jax.random.split(key, 4)
        groups = num_groups(config, size)
        if section.schedule == "fixed":
            scale = annealed_scale(
                scale_key, behind(phase_step), section.fixed, section.noise, groups, size
            )
        elif section.schedule == "anchors":
            scale = anchored_scale(scale_key, section.anchors, section.jitter, groups, size)
        else:
            scale = draw_scale(scale_key, section.min, section.max, groups, size)
        inputs = GateInputs(scale)
        if drops_in_training(config, phase):
            kept = draw_kept(jax.random.split(kept_key, size), scale, num_gates)
            inputs = inputs._replace(kept=kept)
        if not own_gates:
            return inputs._replace(given=jnp.ones((size, num_gates)))
        sigmoid = draw_sigmoid(sigmoid_key, probability, gate.draw, size, num_gates)
        noise = draw_noise(noise_key, size, num_gates) if gate.noise else None
        return inputs._replace(sigmoid=sigmoid, noise=noise)

    return draw


def drops_in_training(config: Config, phase: str) -> bool:
    """Whether blocks are dropped at random in training."""
    return config.gate.random_drop == "always" and PHASES[phase].own_gates


def draw_scale(
    key: Key[Array, ""], low: float, high: float, groups: int, batch_size: int
) -> Float[Array, " B"]:
    """S ~ U(low, high), one for each of `groups` equal parts of the batch, samples in a row.

    As many groups as samples draw one S for each; one group draws one for all (the paper). What
    lies above 1 is 1. The network is asked for S = 1 hardly ever where `high` is 1, and for a share
    (high - 1) / (high - low) of the draws where it is more.
    """
    scale = jnp.minimum(jax.random.uniform(key, (groups,), minval=low, maxval=high), 1.0)
    return jnp.repeat(scale, batch_size // groups)


def anchored_scale(
    key: Key[Array, ""], anchors: tuple[float, ...], jitter: float, groups: int, batch_size: int
) -> Float[Array, " B"]:
    """S near a few anchors, one for each of `groups` equal parts of the batch, samples in a row.

    Each anchor is taken as often as any other, in random order, as far as the groups go. S lies
    within `jitter` of it, and in [0, 1].
    """
    order, offset = jax.random.split(key)
    turn = jax.random.permutation(order, jnp.array(anchors))[jnp.arange(groups) % len(anchors)]
    drawn = jax.random.uniform(offset, (groups,), minval=-jitter, maxval=jitter)
    scale = jnp.clip(turn + drawn, 0, 1)
    return jnp.repeat(scale, batch_size // groups)


def annealed_scale(
    key: Key[Array, ""], progress: float | Float[Array, ""], fixed: float, noise: float,
    groups: int, batch_size: int,
) -> Float[Array, " B"]:  # fmt: skip
    """S of a network for one scale only, URNet(Fixed) (the paper's "scale annealing").

    It falls from 1 to `fixed` along half a cosine, with Gaussian noise, and is held to [0, 1].

    Args:
      key: of the noise.
      progress: of the training of gates, from 0 to 1.
      fixed: the S that training ends at.
      noise: standard deviation; 0.1 in the paper.
      groups: equal parts of the batch, which each have noise of their own.
      batch_size: B.
    """
    mean = fixed + (1 - fixed) * (1 + jnp.cos(jnp.pi * progress)) / 2
    scale = jnp.clip(mean + noise * jax.random.normal(key, (groups,)), 0, 1)
    return jnp.repeat(scale, batch_size // groups)


def progress(
    config: Config, phase: str, steps_per_epoch: float
) -> Callable[[Array], Float[Array, ""]]:
    """The share, 0 to 1, of the phases with gates of their own that lies behind a step."""
    lengths = {
        name: num_steps(config[name].epochs, steps_per_epoch)
        for name in phases_to_run(config)
        if PHASES[name].own_gates
    }
    names, total = list(lengths), max(1, sum(lengths.values()))
    before = sum(lengths[name] for name in names[: names.index(phase)]) if phase in names else 0
    return lambda phase_step: jnp.clip((before + phase_step) / total, 0.0, 1.0)
