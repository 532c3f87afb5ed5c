"""The Conditional Gating Module and its stochastic activation (URNet, section 3)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

GateDraw = Literal["gate", "sample", "step"]


def pool(features: Float[Array, "B H W C"]) -> Float[Array, "B C"]:
    """Global average pool: means over positions, in float32 whatever the features' dtype."""
    return jnp.mean(features, axis=(1, 2), dtype=jnp.float32)


class ConditionalGate(nnx.Module):
    """Scores one residual block from the features that enter it and the scale S.

    Global average pool -> concatenation with S broadcast to C channels -> linear to C / r -> ReLU
    -> linear to one logit (URNet, figure 2 and "Conditional Gating Module").
    """

    def __init__(self, channels: int, *, reduction: int, bias: float, rngs: nnx.Rngs) -> None:
        """A gate over `channels` features.

        Args:
          channels: C, channels of the features that enter the block.
          reduction: r; the hidden layer has C / r units.
          bias: initial bias of the logit. Positive: the gate begins open.
          rngs: of the initial weights.
        """
        hidden = max(1, channels // reduction)
        he_normal = nnx.initializers.he_normal()
        # Highest precision: a TPU's default rounds to bfloat16, and the step is hard.
        self.fc1 = nnx.Linear(
            2 * channels, hidden, kernel_init=he_normal, precision="highest", rngs=rngs
        )
        self.fc2 = nnx.Linear(
            hidden, 1, bias_init=nnx.initializers.constant(bias), precision="highest", rngs=rngs
        )

    def __call__(
        self, features: Float[Array, "B H W C"], scale: Float[Array, " B"]
    ) -> Float[Array, " B"]:
        """The gate's logits, in float32 whatever the features' dtype."""
        return self.score(pool(features), scale)

    def score(self, pooled: Float[Array, "B C"], scale: Float[Array, " B"]) -> Float[Array, " B"]:
        """The gate's logits from features that are pooled already."""
        asked = jnp.broadcast_to(scale[:, None].astype(jnp.float32), pooled.shape)
        hidden = nnx.relu(self.fc1(jnp.concatenate([pooled, asked], axis=-1)))
        return self.fc2(hidden)[:, 0]


def activate(
    logits: Float[Array, "..."], use_sigmoid: Bool[Array, "..."], straight_through: bool = False
) -> Float[Array, "..."]:
    """Gates in [0, 1]: a sigmoid where `use_sigmoid`, else a hard step at 0.5.

    A logit of zero or more is a sigmoid of 0.5 or more, and open. The step has no gradient, or with
    `straight_through` the sigmoid's (Bengio et al. 2013, 1308.3432).
    """
    soft = jax.nn.sigmoid(logits)
    step = (logits >= 0).astype(logits.dtype)
    if straight_through:
        step += soft - jax.lax.stop_gradient(soft)
    return jnp.where(use_sigmoid, soft, step)


def draw_sigmoid(
    key: Array, probability: float, draw: GateDraw, batch_size: int, num_blocks: int
) -> Bool[Array, "B N"]:
    """Which gates of a training step are sigmoids, each with `probability` (the paper's p).

    The paper leaves open how often p is drawn: once per `step`, once per `sample`, or for every
    `gate` of every sample. Block n draws from `fold_in(key, n)`.
    """
    shape = {"gate": (num_blocks, batch_size), "sample": (1, batch_size), "step": (1, 1)}[draw]
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(shape[0]))
    drawn = jax.vmap(lambda k: jax.random.bernoulli(k, probability, shape[1:]))(keys)
    return jnp.broadcast_to(drawn, (num_blocks, batch_size)).T


def draw_noise(key: Key[Array, ""], batch_size: int, num_blocks: int) -> Float[Array, "B N"]:
    """Logistic noise for logits: a step then opens with the probability that is their sigmoid.

    With straight-through gradients this is the binary concrete estimator (Maddison et al. 2017,
    1611.00712), under which a gate that hangs in the balance is costly and learns to decide.
    """
    return jax.random.logistic(key, (batch_size, num_blocks))


def draw_kept(
    keys: Key[Array, " B"], scale: Float[Array, " B"], num_blocks: int
) -> Float[Array, "B N"]:
    """Blocks that random drop leaves: 1 where a block may run, else 0.

    Each sample has an order of its blocks and keeps the first S * N of them, rounded up or down so
    that this is their number on average. Of two S the larger one keeps all that the other keeps.

    Args:
      keys: one per sample.
      scale: S, one per sample.
      num_blocks: N.
    """

    def kept(key: Key[Array, ""], scale: Float[Array, ""]) -> Float[Array, " N"]:
        order, rounding = jax.random.split(key)
        place = jax.random.permutation(order, num_blocks)
        count = jnp.floor(scale * num_blocks + jax.random.uniform(rounding))
        return (place < count).astype(jnp.float32)

    return jax.vmap(kept)(keys, scale)
