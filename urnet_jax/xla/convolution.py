"""A convolution whose weight gradient is fast on CPU.

XLA:CPU contracts the whole batch and all positions in one go for the gradient of a kernel, which
runs several times slower than the same sum taken over chunks of the batch. The split is the same
sum in another order, and other backends never see it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

POSITIONS_PER_CHUNK = 4096
"""Output positions (batch x height x width) of one chunk: where the step time was lowest."""

MAX_CHUNKS = 8
"""More chunks compile longer and run no faster."""


def conv_general_dilated(
    lhs: Float[Array, "B H W C"],
    rhs: Float[Array, "h w C D"],
    window_strides: tuple[int, ...],
    padding: Any,
    **settings: Any,
) -> Float[Array, "B h2 w2 D"]:
    """`jax.lax.conv_general_dilated` with another weight gradient on CPU; for `nnx.Conv`.

    Differentiable in reverse mode only.
    """
    static = (tuple(window_strides), _hashable(padding), tuple(sorted(settings.items())))
    return _conv(lhs, rhs, static)


def _hashable(padding: Any) -> Any:
    return padding if isinstance(padding, str) else tuple(tuple(p) for p in padding)


def _plain(lhs: Array, rhs: Array, static: Any) -> Array:
    strides, padding, settings = static
    return lax.conv_general_dilated(lhs, rhs, strides, padding, **dict(settings))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(lhs: Array, rhs: Array, static: Any) -> Array:
    return _plain(lhs, rhs, static)


def _forward(lhs: Array, rhs: Array, static: Any) -> tuple[Array, tuple[Array, Array]]:
    return _plain(lhs, rhs, static), (lhs, rhs)


def _backward(static: Any, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    lhs, rhs = saved
    (lhs_grad,) = jax.vjp(lambda x: _plain(x, rhs, static), lhs)[1](grad)

    def kernel_grad(lhs: Array, grad: Array) -> Array:
        return jax.vjp(lambda w: _plain(lhs, w, static), rhs)[1](grad)[0]

    def split_kernel_grad(lhs: Array, grad: Array) -> Array:
        # XLA:CPU runs what is ready: without this dependence it lays out every layer's input anew
        # in the forward pass already, and keeps both until the backward pass needs them.
        lhs = lhs + 0 * grad[0, 0, 0, 0]
        chunks = num_chunks(grad.shape)
        parts = zip(jnp.split(lhs, chunks), jnp.split(grad, chunks), strict=True)
        return functools.reduce(jnp.add, (kernel_grad(x, g) for x, g in parts))

    return lhs_grad, lax.platform_dependent(lhs, grad, cpu=split_kernel_grad, default=kernel_grad)


_conv.defvjp(_forward, _backward)


def num_chunks(output_shape: tuple[int, ...]) -> int:
    """Chunks of the batch for the weight gradient of an output [B, H, W, D]; divides B."""
    batch, height, width, _ = output_shape
    wanted = min(MAX_CHUNKS, max(1, batch * height * width // POSITIONS_PER_CHUNK))
    return next(n for n in range(wanted, 0, -1) if batch % n == 0)
