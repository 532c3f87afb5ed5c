"""Augmentation and normalisation on the device; `decode` does on the host what files need.

Every random number is a function of (seed, epoch, example index) alone, so that an augmented image
depends neither on the batch it is in nor on the number of processes, threads or restarts.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from urnet_jax import streams
from urnet_jax.data.datasets import AUGMENTATIONS, IMAGENET
from urnet_jax.errors import UserError
from urnet_jax.streams import Stream

_DIGITS = (0.3054,), (0.3760,)


def normalization(dataset: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of pixels in [0, 1], that `normalize` takes.

    Those of digits are of its training split. All others, CIFAR too, take ImageNet's, which
    published PyTorch weights expect.
    """
    return _DIGITS if dataset == "digits" else IMAGENET


def normalize(
    images: UInt8[Array | np.ndarray, "b h w c"] | Float[Array, "b h w c"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Array, "b h w c"]:
    """Pixels of 0 to 255 as float32, with `mean` and `std` (per channel, of [0, 1]) taken out."""
    scaled = jnp.asarray(images, jnp.float32) / 255
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def augment_images(
    images: UInt8[Array, "b h w c"],
    index: Int[Array, " b"],
    epoch: Int[Array, " b"],
    *,
    seed: int,
    mode: str,
    padding: int,
) -> UInt8[Array, "b h w c"]:
    """Augments a batch on the device; to be called inside `jax.jit`.

    Args:
      images: the batch.
      index: of each example in its split.
      epoch: in which each example is seen.
      seed: of the run.
      mode: `crop` pads with zeros and crops at random; `crop_flip` also mirrors every second image,
        left to right; so does `random_resized_crop`, whose crop is done in decoding; `none` changes
        nothing, nor does `scale_crop_flip`, all of which is done in decoding, maps and all.
      padding: pixels added on each side before the crop.

    Raises:
      UserError: `mode` is unknown.
    """
    if mode not in AUGMENTATIONS:
        raise UserError(f"data.augment is {mode!r}; expected one of {', '.join(AUGMENTATIONS)}.")
    if mode in ("none", "scale_crop_flip"):
        return images
    stream = streams.key(seed, Stream.AUGMENTATION)
    crops = mode != "random_resized_crop"
    around = (padding, padding) if crops else (0, 0)
    padded = jnp.pad(images, ((0, 0), around, around, (0, 0)))

    def augment(image, index, epoch):
        key = jax.random.fold_in(jax.random.fold_in(stream, epoch), index)
        crop_key, flip_key = jax.random.split(key)
        if crops:
            top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
            image = jax.lax.dynamic_slice(image, (top, left, 0), images.shape[1:])
        if mode == "crop":
            return image
        return jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)

    return jax.vmap(augment)(padded, index, epoch)
