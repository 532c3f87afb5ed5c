"""The scale loss (URNet, equation 4)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def scale_loss(
    gates: Float[Array, "B G"], scale: Float[Array, " B"], groups: int | None = None
) -> Float[Array, ""]:
    """Squared distance of the usage, the mean gate, from the asked scale S (equation 4).

    Args:
      gates: of a batch.
      scale: S of each sample.
      groups: each of so many equal parts of the batch, samples in a row, is held to its mean S by
        its mean usage, so that samples may share a budget. By default each sample is held to its
        own S. The paper leaves the choice open.
    """
    usage = gates.mean(axis=1)
    if groups is not None:
        usage, scale = (x.reshape(groups, -1).mean(axis=1) for x in (usage, scale))
    return jnp.mean(jnp.square(usage - scale))
