"""Batch-shaping: over a batch, a gate's probabilities take the form of a Beta distribution.

(Bejnordi, Blankevoort and Welling 2020, 1907.06627.) A gate whose form is bound cannot be open for
all images, or for none: what it does has to depend on the image.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, betaln
from jaxtyping import Array, Float

from urnet_jax.config import Config, num_groups

END = 0.02
"""A prior's mean stays so far from 0 and 1, where no Beta distribution is."""


def shaping_loss(
    logits: Float[Array, "B G"], alpha: Float[Array, " P"], beta: Float[Array, " P"]
) -> Float[Array, ""]:
    """Distance of each gate's probabilities from a prior: the criterion of Cramér and von Mises.

    Mean over samples and gates of (i / (n + 1) - F(x_i))^2, where x_1 <= ... <= x_n are one gate's
    sigmoids in a part of the batch and F is the distribution function of Beta(alpha, beta). (The
    paper's algorithm sums; a mean lets weights mean the same for any batch and network.)

    Args:
      logits: of gates, without noise.
      alpha: of the prior of each of P equal parts of the batch, samples in a row, which are sorted
        each by itself.
      beta: likewise.
    """
    size, gates = logits.shape
    parts = len(alpha)
    ordered = jnp.sort(logits.astype(jnp.float32).reshape(parts, -1, gates), axis=1)
    of_prior = cdf(ordered, alpha[:, None, None], beta[:, None, None])
    in_part = size // parts
    of_batch = jnp.arange(1, in_part + 1) / (in_part + 1)
    return jnp.mean(jnp.square(of_batch[None, :, None] - of_prior))


@jax.custom_jvp
def cdf(
    logits: Float[Array, "..."], alpha: Float[Array, "..."], beta: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Distribution function of Beta(alpha, beta) at sigmoid(logits); shapes broadcast.

    Its derivative is by the logit, x^alpha (1 - x)^beta / B(alpha, beta), which vanishes at both
    ends, where the density by x may be infinite. The parameters are constants.
    """
    # From the nearer end: a sigmoid of 17 is 1 in float32, where F may still be far from it.
    low = logits < 0
    of_end = betainc(
        jnp.where(low, alpha, beta), jnp.where(low, beta, alpha), jax.nn.sigmoid(-jnp.abs(logits))
    )
    return jnp.where(low, of_end, 1 - of_end)


@cdf.defjvp
def _cdf_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    logits, alpha, beta = primals
    log_slope = alpha * jax.nn.log_sigmoid(logits) + beta * jax.nn.log_sigmoid(-logits)
    return cdf(*primals), jnp.exp(log_slope - betaln(alpha, beta)) * tangents[0]


def of_gates(
    config: Config, logits: Float[Array, "B G"], scale: Float[Array, " B"],
    progress: Float[Array, ""],
) -> Any:  # fmt: skip
    """What `config.shaping` asks of a batch's gates, weighed.

    Args:
      config: with `shaping.mean` "scale" the prior's mean is S, of each group of one S by itself,
        and alpha + beta stay as they are.
      logits: without noise.
      scale: S of each sample.
      progress: of the training of gates, 0 to 1.
    """
    section, total = config.shaping, config.shaping.alpha + config.shaping.beta
    alpha = jnp.full(parts(config, len(scale)), section.alpha)
    if section.mean == "scale":
        alpha = total * jnp.clip(scale.reshape(len(alpha), -1).mean(axis=1), END, 1 - END)
    left = 1 - progress / section.fades_by if section.fades_by else 1.0
    return section.weight * jnp.maximum(0.0, left) * shaping_loss(logits, alpha, total - alpha)


def parts(config: Config, batch_size: int) -> int:
    """Into how many equal parts a batch falls whose gates are shaped each by itself."""
    by_scale = config.shaping.mean == "scale"
    return num_groups(config, batch_size) if by_scale else config.shaping.parts
