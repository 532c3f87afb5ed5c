"""What training asks of gates beside the task: to use what S says."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def gaps_of(
    usage: Float[Array, " B"], scale: Float[Array, " B"], groups: int | None = None
) -> Float[Array, " g"]:
    """By how much the usage lies above the asked scale S.

    Args:
      usage: of each sample, a share: of its gates that are open, or of FLOPs.
      scale: S of each sample.
      groups: each of so many equal parts of the batch, samples in a row, is held to its mean S by
        its mean usage, so that samples may share a budget. By default each sample is held to its
        own S. The paper leaves the choice open.
    """
    if groups is not None:
        usage, scale = (x.reshape(groups, -1).mean(axis=1) for x in (usage, scale))
    return usage - scale


def scale_loss(gaps: Float[Array, " g"]) -> Float[Array, ""]:
    """Their mean square (URNet, equation 4)."""
    return jnp.mean(jnp.square(gaps))


def anchor_of(scale: Float[Array, " g"], anchors: tuple[float, ...]) -> Int[Array, " g"]:
    """The number of the nearest anchor."""
    return jnp.abs(scale[:, None] - jnp.array(anchors)).argmin(axis=1)


def price(
    gaps: Float[Array, " g"], multipliers: Float[Array, " K"], anchor: Int[Array, " g"]
) -> Float[Array, ""]:
    """The mean of gaps, each times the multiplier of its anchor: a Lagrangian's constraint.

    Args:
      gaps: of samples or groups.
      multipliers: what usage beyond S costs at each anchor; below 0, what falling short costs.
      anchor: which anchor each gap belongs to.
    """
    return jnp.mean(multipliers[anchor] * gaps)


def ascended(
    multipliers: Float[Array, " K"], gaps: Float[Array, " g"], anchor: Int[Array, " g"],
    rate: float,
) -> Float[Array, " K"]:  # fmt: skip
    """The multipliers after a step of dual ascent (Gallego-Posada et al. 2022, 2208.04425).

    Each rises by `rate` times the mean of its gaps: usage above S becomes dearer until it stops.
    """
    sums, count = (
        jnp.zeros_like(multipliers).at[anchor].add(x) for x in (gaps, jnp.ones_like(gaps))
    )
    return multipliers + rate * sums / jnp.maximum(count, 1)


def expected_open(logits: Float[Array, "B G"]) -> Float[Array, ""]:
    """The share of gates that are open, each with the probability of its sigmoid.

    By it the L0 norm is made small (Louizos et al. 2018, 1712.01312; Bejnordi et al. 2020).
    """
    return jnp.mean(jax.nn.sigmoid(logits))


def guard(
    soft: Float[Array, "B G"], target: Float[Array, "B G"], groups: int | None = None
) -> Float[Array, ""]:
    """Mean square distance of each gate's share of openings from its target.

    Args:
      soft: the sigmoids of the gates' logits.
      target: what they would be by the prior alone.
      groups: equal parts of the batch whose means are held to one another; by default each sample
        is held to its own target.
    """
    if groups is not None:
        soft, target = (x.reshape(groups, -1, x.shape[1]).mean(axis=1) for x in (soft, target))
    return jnp.mean(jnp.square(soft - target))
