"""A convolution that is fast on CPU where XLA's own is slow; other backends never see it.

XLA:CPU has two weaknesses:

* For the gradient of a kernel it contracts the whole batch and all positions in one go, which runs
  several times slower than the same sum taken over chunks of the batch.
* It hands a convolution to Eigen only if the input is at least as large as the kernel, padding not
  counted. A smaller one, as a 2x2 map under a 3x3 kernel, goes through naive loops, up to 150 times
  slower than one dot over patches of the input. The gradient of the input has the output's size, so
  that the same holds where a stride makes the output smaller than the kernel.

The results are the same sums in another order.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

POSITIONS_PER_CHUNK = 4096
"""Output positions (batch x height x width) of one chunk: where the step time was lowest."""

MAX_CHUNKS = 8
"""More chunks compile longer and run no faster."""


class _How(NamedTuple):
    """What a convolution takes besides its operands; hashable."""

    strides: tuple[int, ...]
    padding: Any
    settings: tuple[tuple[str, Any], ...]


def conv_general_dilated(
    lhs: Float[Array, "B H W C"],
    rhs: Float[Array, "h w C2 D"],
    window_strides: tuple[int, ...],
    padding: Any,
    **settings: Any,
) -> Float[Array, "B H2 W2 D"]:
    """`jax.lax.conv_general_dilated`, computed in another way on CPU; for `nnx.Conv`.

    Differentiable in reverse mode only. Of the settings, `precision` and `preferred_element_type`
    mean the same in both ways.

    Raises:
      ValueError: `dimension_numbers` names another layout than NHWC and HWIO.
    """
    numbers = settings.get("dimension_numbers")
    if lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers) != _LAYOUT:
        raise ValueError(f"dimension_numbers is {numbers}; expected NHWC, HWIO and NHWC.")
    padding = padding if isinstance(padding, str) else tuple(tuple(p) for p in padding)
    return _conv(lhs, rhs, _How(tuple(window_strides), padding, tuple(sorted(settings.items()))))


_LAYOUT = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(lhs: Array, rhs: Array, how: _How) -> Array:
    plain, as_dot = (functools.partial(f, how=how) for f in (_plain, _as_dot))
    if _is_naive(lhs.shape, rhs.shape, how):
        return lax.platform_dependent(lhs, rhs, cpu=as_dot, default=plain)
    return plain(lhs, rhs)


def _forward(lhs: Array, rhs: Array, how: _How) -> tuple[Array, tuple[Array, Array]]:
    return _conv(lhs, rhs, how), (lhs, rhs)


def _backward(how: _How, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    lhs, rhs = saved

    def lhs_grad(rhs: Array, grad: Array) -> Array:
        return jax.vjp(lambda x: _plain(x, rhs, how), lhs)[1](grad)[0]

    def kernel_grad(lhs: Array, grad: Array) -> Array:
        return jax.vjp(lambda w: _plain(lhs, w, how), rhs)[1](grad)[0]

    def split_kernel_grad(lhs: Array, grad: Array) -> Array:
        # XLA:CPU runs what is ready: without this dependence it lays out every layer's input anew
        # in the forward pass already, and keeps both until the backward pass needs them.
        lhs = lhs + 0 * grad[:, :1, :1, :1]
        chunks = zip(_chunks(lhs, grad.shape), _chunks(grad, grad.shape), strict=True)
        return functools.reduce(jnp.add, (kernel_grad(x, g) for x, g in chunks))

    if _is_naive(grad.shape, rhs.shape, how):
        as_dot = functools.partial(_lhs_grad_as_dot, shape=lhs.shape, dtype=lhs.dtype, how=how)
        of_lhs = lax.platform_dependent(rhs, grad, cpu=as_dot, default=lhs_grad)
    else:
        of_lhs = lhs_grad(rhs, grad)
    return of_lhs, lax.platform_dependent(lhs, grad, cpu=split_kernel_grad, default=kernel_grad)


_conv.defvjp(_forward, _backward)


def _plain(lhs: Array, rhs: Array, how: _How) -> Array:
    return lax.conv_general_dilated(lhs, rhs, how.strides, how.padding, **dict(how.settings))


def _is_naive(shape: tuple[int, ...], kernel_shape: tuple[int, ...], how: _How) -> bool:
    """Whether XLA:CPU convolves [B, H, W, C] in naive loops, and a dot can take their place."""
    settings = dict(how.settings)
    groups = settings.get("feature_group_count", 1) * settings.get("batch_group_count", 1)
    dilations = (settings.get(name) or () for name in ("lhs_dilation", "rhs_dilation"))
    ordinary = groups == 1 and all(by == 1 for dilation in dilations for by in dilation)
    return ordinary and any(n < k for n, k in zip(shape[1:3], kernel_shape[:2], strict=True))


def _as_dot(lhs: Array, rhs: Array, how: _How) -> Array:
    """The convolution as one dot of the input's patches with the kernel."""
    settings = dict(how.settings)
    patches = _patches(lhs, rhs.shape, how)
    return lax.dot_general(
        patches, rhs, (((3, 4, 5), (0, 1, 2)), ((), ())), precision=settings.get("precision"),
        preferred_element_type=settings.get("preferred_element_type"),
    )  # fmt: skip


def _lhs_grad_as_dot(
    rhs: Array, grad: Array, *, shape: tuple[int, ...], dtype: Any, how: _How
) -> Array:
    """The gradient of an input [B, H, W, C]: that of its patches, each added where it was taken."""
    # Rounded once, after the sum, as a convolution does.
    total = jnp.promote_types(dtype, jnp.float32)
    of_patches = lax.dot_general(
        grad, rhs.astype(grad.dtype), (((3,), (3,)), ((), ())),
        precision=dict(how.settings).get("precision"), preferred_element_type=total,
    )  # fmt: skip
    take = functools.partial(_patches, kernel_shape=rhs.shape, how=how)
    (of_lhs,) = jax.linear_transpose(take, jax.ShapeDtypeStruct(shape, total))(of_patches)
    return of_lhs.astype(dtype)


def _patches(lhs: Array, kernel_shape: tuple[int, ...], how: _How) -> Array:
    """What the kernel [h, w, C, D] sees at each output position: [B, H2, W2, h, w, C]."""
    (height, width), (down, right), padding = kernel_shape[:2], how.strides, how.padding
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], kernel_shape[:2], how.strides, padding)
    padded = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
    last_row, last_column = padded.shape[1] - height, padded.shape[2] - width
    rows = [
        jnp.stack([
            padded[:, i : i + last_row + 1 : down, j : j + last_column + 1 : right]
            for j in range(width)
        ], axis=3)
        for i in range(height)
    ]  # fmt: skip
    return jnp.stack(rows, axis=3)


def _chunks(array: Array, output_shape: tuple[int, ...]) -> list[Array]:
    """Parts of a batch [B, ...] for the weight gradient of an output.

    A part has some samples of each device: devices that the batch is split over exchange none.
    """
    devices = _sharers(output_shape[0])
    divided = array.reshape(devices, num_chunks(output_shape, devices), -1, *array.shape[1:])
    return [divided[:, i].reshape(-1, *array.shape[1:]) for i in range(divided.shape[1])]


def _sharers(batch: int) -> int:
    """Devices, at most, that a batch can be split over in equal parts."""
    return math.gcd(batch, jax.device_count())


def num_chunks(output_shape: tuple[int, ...], devices: int = 1) -> int:
    """Chunks of each device's part of the batch, for the weight gradient of an output [B, H, W, D].

    It divides B / devices.
    """
    batch, height, width, _ = output_shape
    share = batch // devices
    wanted = min(MAX_CHUNKS, max(1, share * height * width // POSITIONS_PER_CHUNK))
    return next(n for n in range(wanted, 0, -1) if share % n == 0)
