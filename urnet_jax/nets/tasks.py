"""What a network is for: its loss, and what is measured of each sample."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


@runtime_checkable
class Task(Protocol):
    """Loss and measures per sample of predictions and labels."""

    def loss(self, prediction: Array, label: Array) -> Float[Array, " B"]:
        """What training makes small, in nats."""
        ...

    def distance(self, prediction: Array, teacher: Array, temperature: float) -> Float[Array, " B"]:
        """How far predictions are from a teacher's, in nats, whatever the labels are."""
        ...

    def answer(self, prediction: Array) -> Array:
        """What the network says."""
        ...

    def correct(self, prediction: Array, label: Array) -> Bool[Array, " B"]:
        """Whether that is right."""
        ...


class Classification:
    """One class of K for each sample."""

    def loss(self, prediction: Float[Array, "B K"], label: Int[Array, " B"]) -> Float[Array, " B"]:
        """Cross entropy in nats, in float32."""
        return optax.softmax_cross_entropy_with_integer_labels(
            prediction.astype(jnp.float32), label
        )

    def distance(
        self, prediction: Float[Array, "B K"], teacher: Float[Array, "B K"], temperature: float
    ) -> Float[Array, " B"]:
        """KL divergence of softened classes, times the temperature's square (1503.02531)."""
        asked, said = (
            jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
            for logits in (teacher, prediction)
        )
        return temperature**2 * jnp.sum(jnp.exp(asked) * (asked - said), axis=-1)

    def answer(self, prediction: Float[Array, "B K"]) -> Int[Array, " B"]:
        """The likeliest class."""
        return prediction.argmax(-1).astype(jnp.int32)

    def correct(
        self, prediction: Float[Array, "B K"], label: Int[Array, " B"]
    ) -> Bool[Array, " B"]:
        """Whether the likeliest class is the label."""
        return self.answer(prediction) == label
