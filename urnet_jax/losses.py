"""Cross entropy and the scale loss (URNet, equations 4 and 5)."""

from typing import Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """Cross entropy per sample, in nats, computed in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def scale_loss(
    gates: Float[Array, "B N"],
    scale: Float[Array, " B"],
    over: Literal["sample", "batch"] = "sample",
) -> Float[Array, ""]:
    """Squared distance of the usage, the mean gate, from the asked scale S (equation 4).

    Over `sample`, each sample's usage is held to its own S; over `batch`, the batch's mean usage
    to the mean S, so that samples may share a budget. The paper leaves the choice open.
    """
    error = gates.mean(axis=1) - scale
    if over == "batch":
        error = error.mean()
    return jnp.mean(jnp.square(error))
