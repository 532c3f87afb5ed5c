"""Cross entropy and the scale loss (URNet, equations 4 and 5)."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """Cross entropy per sample, in nats, computed in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def scale_loss(
    gates: Float[Array, "B N"], scale: Float[Array, " B"], groups: int | None = None
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
