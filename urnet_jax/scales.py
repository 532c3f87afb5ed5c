"""How the scale S is drawn in training."""

from typing import Literal

import jax
from jaxtyping import Array, Float

ScaleDraw = Literal["sample", "step"]


def draw_scale(
    key: Array, low: float, high: float, draw: ScaleDraw, batch_size: int
) -> Float[Array, " B"]:
    """S ~ U(low, high), one value per sample or one for all samples of the step (the paper)."""
    shape = (batch_size,) if draw == "sample" else (1,)
    scale = jax.random.uniform(key, shape, minval=low, maxval=high)
    return jax.numpy.broadcast_to(scale, (batch_size,))
