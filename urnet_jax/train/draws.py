"""What reaches the gates besides features: the scales S of a batch, and what is drawn at random."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from urnet_jax.config import Config, architecture, heeds_scale, phases_to_run
from urnet_jax.nets.gates import draw_kept, draw_noise, draw_sigmoid
from urnet_jax.train import optimizer, scales

# Keeps the draws of a test apart from others that also start from the seed.
_TEST = 0x7E57


def for_training(
    config: Config, phase: str, steps_per_epoch: float
) -> Callable[[Array, Array, int], dict[str, Array]]:
    """What is drawn for the batches of a phase.

    Returns:
      f(key, phase_step, B) -> scale [B]; use_sigmoid [B, N]; noise [B, N] and kept [B, N] where
      training has noise and random drop. `key` is the step's own.
    """
    num_blocks, progress = _num_blocks(config), _progress(config, phase, steps_per_epoch)
    section, gate = config.scale, config.gate

    def draw(key: Array, phase_step: Array, size: int) -> dict[str, Array]:
        scale_key, gate_key = jax.random.split(key)
        if section.schedule == "fixed":
            scale = scales.annealed_scale(
                scale_key, progress(phase_step), section.fixed, section.noise, section.draw, size
            )
        else:
            scale = scales.draw_scale(scale_key, section.min, section.max, section.draw, size)
        probability = 1.0 if _weighs_only(config) else gate.sigmoid_probability
        drawn = {
            "scale": scale,
            "use_sigmoid": draw_sigmoid(gate_key, probability, gate.draw, size, num_blocks),
        }
        # Not one split in four: what is drawn without these stays as it is.
        if gate.noise:
            drawn["noise"] = draw_noise(jax.random.fold_in(key, 3), size, num_blocks)
        if drops_in_training(config, phase):
            keys = jax.random.split(jax.random.fold_in(key, 2), size)
            drawn["kept"] = draw_kept(keys, scale, num_blocks)
        return drawn

    return draw


def for_test(
    config: Config, phase: str, scale: Float[Array, " B"], index: Int[Array, " B"]
) -> dict[str, Any]:
    """Arguments of `ResNet.__call__` with which a network of `phase` is tested and served.

    They are empty but for random drop, whose draws depend on the seed, each example's `index` and
    S alone; gates beside it are sigmoids, which weigh what it leaves.
    """
    if not heeds_scale(config, phase) or config.gate.random_drop == "never":
        return {}
    key, num_blocks = jax.random.fold_in(jax.random.key(config.seed), _TEST), _num_blocks(config)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    return {
        "kept": draw_kept(keys, scale, num_blocks),
        "use_sigmoid": jnp.full((index.shape[0], num_blocks), _weighs_only(config)),
    }


def drops_in_training(config: Config, phase: str) -> bool:
    """Whether blocks are dropped at random in training."""
    return config.gate.random_drop == "always" and phase != "pretrain"


def _weighs_only(config: Config) -> bool:
    """Whether gates only weigh the blocks that random drop leaves ("block attention")."""
    return config.model.gated and config.gate.random_drop != "never"


def _num_blocks(config: Config) -> int:
    return architecture(config).num_blocks


def _progress(
    config: Config, phase: str, steps_per_epoch: float
) -> Callable[[Array], Float[Array, ""]]:
    """The share, 0 to 1, of the phases after `pretrain` that lies behind a step of `phase`."""
    lengths = {
        name: optimizer.num_steps(config[name].epochs, steps_per_epoch)
        for name in phases_to_run(config)
        if name != "pretrain"
    }
    names, total = list(lengths), max(1, sum(lengths.values()))
    before = sum(lengths[name] for name in names[: names.index(phase)]) if phase in names else 0
    return lambda phase_step: jnp.clip((before + phase_step) / total, 0.0, 1.0)
