"""How the scale S is drawn in training."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from urnet_jax.train.groups import ScaleDraw, num_groups


def draw_scale(
    key: Array, low: float, high: float, draw: ScaleDraw, batch_size: int
) -> Float[Array, " B"]:
    """S ~ U(low, high): one per sample, per group, or one for all samples of the step (the paper).

    What lies above 1 is 1. The network is asked for S = 1 hardly ever where `high` is 1, and for a
    share (high - 1) / (high - low) of the draws where it is more. A batch of groups has
    `num_groups` values.
    """
    groups = num_groups(draw, batch_size)
    scale = jnp.minimum(jax.random.uniform(key, (groups,), minval=low, maxval=high), 1.0)
    return jnp.repeat(scale, batch_size // groups)


def annealed_scale(
    key: Array, progress: float | Float[Array, ""], fixed: float, noise: float, draw: ScaleDraw,
    batch_size: int,
) -> Float[Array, " B"]:  # fmt: skip
    """S of a network for one scale only, URNet(Fixed) (the paper's "scale annealing").

    It falls from 1 to `fixed` along half a cosine, with Gaussian noise, and is held to [0, 1].

    Args:
      key: of the noise.
      progress: of the training of gates, from 0 to 1.
      fixed: the S that training ends at.
      noise: standard deviation; 0.1 in the paper.
      draw: how often noise is drawn, as for `draw_scale`.
      batch_size: B.
    """
    groups = num_groups(draw, batch_size)
    mean = fixed + (1 - fixed) * (1 + jnp.cos(jnp.pi * progress)) / 2
    scale = jnp.clip(mean + noise * jax.random.normal(key, (groups,)), 0, 1)
    return jnp.repeat(scale, batch_size // groups)
