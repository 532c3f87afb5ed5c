"""BatchNorm over a batch, and the sums that it needs, in a form that XLA:CPU computes fast."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def over_positions(x: Float[Array, "B H W C"]) -> Float[Array, "B C"]:
    """Sums over height and width, in float32 or better.

    XLA:CPU adds rows of W * C numbers well, and sums with a stride slowly.
    """
    batch, height, width, channels = x.shape
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    rows = x.reshape(batch, height, width * channels).sum(axis=1)
    return rows.reshape(batch, width, channels).sum(axis=1)


def over_batch(x: Float[Array, "B H W C"]) -> Float[Array, " C"]:
    """Sums over batch, height and width, in float32 or better; as `over_positions`."""
    batch, height, width, channels = x.shape
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    rows = x.reshape(batch * height, width * channels).sum(axis=0)
    return rows.reshape(width, channels).sum(axis=0)


def normalize(
    x: Float[Array, "B H W C"], scale: Float[Array, " C"], bias: Float[Array, " C"],
    epsilon: float, weight: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, "B H W C"], Float[Array, " C"], Float[Array, " C"]]:  # fmt: skip
    """BatchNorm with the batch's own statistics (Ioffe and Szegedy 2015, 1502.03167).

    Args:
      x: in any float dtype; the computation is in float32.
      scale: of the normalised channels.
      bias: added to those.
      epsilon: added to the variance.
      weight: what each sample of the result is multiplied by, a gate say. Its gradient comes of the
        sums that the others need too.

    Returns:
      The normalised x, in its dtype, and the batch's mean and (biased) variance per channel, in
      float32, which have no gradient.
    """
    found: Any = _normalize(x, scale, bias, weight, epsilon)
    out, mean, var = found
    return out, lax.stop_gradient(mean), lax.stop_gradient(var)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalize(
    x: Array, scale: Array, bias: Array, weight: Array | None, epsilon: float
) -> tuple[Array, Array, Array]:
    return _forward(x, scale, bias, weight, epsilon)[0]


def _forward(
    x: Array, scale: Array, bias: Array, weight: Array | None, epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Any, ...]]:
    count = x.size // x.shape[-1]
    mean = over_batch(x) / count
    # As Flax computes it; rounding may bring it below 0.
    var = jnp.maximum(0.0, over_batch(jnp.square(x.astype(mean.dtype))) / count - jnp.square(mean))
    inverse = lax.rsqrt(var + epsilon)
    out = (x - mean) * (inverse * scale) + bias
    if weight is not None:
        out = weight[:, None, None, None] * out
    return (out.astype(x.dtype), mean, var), (x, scale, bias, weight, mean, inverse)


def _backward(
    epsilon: float, saved: tuple[Any, ...], grads: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array, Array | None]:
    x, scale, bias, weight, mean, inverse = saved
    grad = grads[0].astype(mean.dtype)
    count = x.size // x.shape[-1]
    normal = (x - mean) * inverse
    of_weight = None
    if weight is None:
        of_bias, of_scale = over_batch(grad), over_batch(grad * normal)
    else:
        by_sample = over_positions(grad), over_positions(grad * normal)
        of_weight = (by_sample[0] * bias + by_sample[1] * scale).sum(axis=1)
        of_bias, of_scale = ((weight[:, None] * sums).sum(axis=0) for sums in by_sample)
        grad = weight[:, None, None, None] * grad
    of_x = (scale * inverse) * (grad - of_bias / count - normal * (of_scale / count))
    return of_x.astype(x.dtype), of_scale, of_bias, of_weight


_normalize.defvjp(_forward, _backward)
