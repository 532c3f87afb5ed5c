"""Images as they come from outside."""

from typing import Any

import numpy as np
from jaxtyping import Float32

from urnet_jax.errors import UserError


def check(images: Any, shape: tuple[int, int, int]) -> Float32[np.ndarray, "n H W C"]:
    """Images as the network takes them.

    Args:
      images: pixels of 0 to 255, [n, H, W, C], uint8 or floating point.
      shape: H, W and C that are expected.

    Raises:
      UserError: they are of another shape or type, or hold what is no pixel.
    """
    try:
        array = np.asarray(images)
    except ValueError as error:  # lists of different lengths
        raise UserError(f"images are no array ({error}); expected {_expected(shape)}.") from error
    if array.ndim == 3 and array.shape == shape:
        raise UserError(
            f"images has the shape {array.shape}, that of one image; expected {_expected(shape)}: "
            "write images[None]."
        )
    if array.ndim != 4 or array.shape[1:] != shape:
        raise UserError(f"images has the shape {array.shape}; expected {_expected(shape)}.")
    # JAX's bfloat16 is a floating type that NumPy does not count among its own.
    whole = array.dtype == np.uint8
    floating = not whole and (array.dtype.kind == "f" or array.dtype.name == "bfloat16")
    if not whole and not floating:
        raise UserError(f"images is of {array.dtype}; expected uint8 or floating-point pixels.")
    found = array.astype(np.float32)
    if floating and found.size and not (found.min() >= 0 and found.max() <= 255):
        within = np.isfinite(found).all()
        what = "numbers outside of 0 to 255" if within else "numbers that are not finite"
        raise UserError(f"images holds {what}; expected pixels from 0 to 255.")
    return found


def _expected(shape: tuple[int, int, int]) -> str:
    return f"[n, {', '.join(map(str, shape))}], pixels of 0 to 255"
