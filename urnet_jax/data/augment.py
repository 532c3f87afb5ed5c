"""Augmentation and normalisation: on the device for images in memory, on the host for files.

Every random number is a function of (seed, epoch, example index) alone, so that an augmented image
depends neither on the batch it is in nor on the number of processes, threads or restarts.
"""

import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import simplejpeg
from cykooz_resizer import (
    CropBox,
    FilterType,
    ImageData,
    PixelType,
    ResizeAlg,
    ResizeOptions,
    Resizer,
)
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from urnet_jax.data.sources import AUGMENTATIONS
from urnet_jax.errors import UserError

_DIGITS = (0.3054,), (0.3760,)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Keeps these draws apart from others that also start from the seed and fold in a counter.
_STREAM = 0x0A06

_CROP_AREA = (0.08, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10
_EVAL_RESIZE = 256 / 224
_BILINEAR = ResizeAlg.convolution(FilterType.bilinear)


def normalization(dataset: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of pixels in [0, 1], that `normalize` takes.

    Those of digits are of its training split. All others, CIFAR too, take ImageNet's, which
    published PyTorch weights expect.
    """
    return _DIGITS if dataset == "digits" else _IMAGENET


def normalize(
    images: UInt8[Array, "b h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "b h w c"]:
    """Pixels of 0 to 255 as float32, with `mean` and `std` (per channel, of [0, 1]) taken out."""
    scaled = images.astype(jnp.float32) / 255
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
        nothing.
      padding: pixels added on each side before the crop.

    Raises:
      UserError: `mode` is unknown.
    """
    if mode not in AUGMENTATIONS:
        raise UserError(f"data.augment is {mode!r}; expected one of {', '.join(AUGMENTATIONS)}.")
    if mode == "none":
        return images
    stream = jax.random.fold_in(jax.random.key(seed), _STREAM)
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


def decode_train(
    file: bytes, image_size: int, seed: int, epoch: int, index: int
) -> UInt8[np.ndarray, "image_size image_size 3"]:
    """Decodes, crops a random window (8 to 100 % of the area, 3:4 to 4:3), and resizes it.

    `augment_images` mirrors it on the device, for which it costs next to nothing.

    Of a JPEG whose window is at least four times as large as what is asked for, no more than a
    half, a quarter or an eighth of each side is decoded; the rest is resized away as PIL would.
    """
    width, height = _image_size(file)
    left, top, right, bottom = draw_window(width, height, seed, epoch, index)
    pixels = _decode(file, width, height, min(right - left, bottom - top) / image_size)
    h, w, _ = pixels.shape
    box = left * w / width, top * h / height, right * w / width, bottom * h / height
    return _resized_crop(pixels, box, image_size)


def draw_window(
    width: int, height: int, seed: int, epoch: int, index: int
) -> tuple[int, int, int, int]:
    """The window (left, top, right, bottom) of an image of this size in an epoch."""
    return _random_window(np.random.default_rng((_STREAM, seed, epoch, index)), width, height)


def decode_eval(jpeg_bytes: bytes, image_size: int) -> UInt8[np.ndarray, "image_size image_size 3"]:
    """Decodes, resizes the shorter side to image_size * 256 / 224, and crops the centre."""
    image = Image.open(io.BytesIO(jpeg_bytes)).convert("RGB")
    width, height = image.size
    shorter = round(image_size * _EVAL_RESIZE)
    factor = shorter / min(width, height)
    # int, not round, as torchvision does, whose weights are to be evaluated as published.
    width, height = max(shorter, int(width * factor)), max(shorter, int(height * factor))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    return np.asarray(image.crop((left, top, left + image_size, top + image_size)))


def _image_size(file: bytes) -> tuple[int, int]:
    """Width and height, from the file's header."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(file)
        return int(width), int(height)
    except ValueError:  # Not a JPEG.
        return Image.open(io.BytesIO(file)).size


def _decode(file: bytes, width: int, height: int, shrinkable: float) -> UInt8[np.ndarray, "h w 3"]:
    """The whole image, a JPEG's sides smaller by at most half of the factor `shrinkable`.

    Where nothing shrinks these are PIL's pixels, in less time.
    """
    factor = max(f for f in (1, 2, 4, 8) if f <= max(1.0, shrinkable / 2))
    try:
        return simplejpeg.decode_jpeg(
            file, min_height=-(-height // factor), min_width=-(-width // factor), min_factor=factor
        )
    except ValueError:  # Another format, CMYK, or damaged: PIL reads it, or says what is wrong.
        return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def _resized_crop(
    pixels: UInt8[np.ndarray, "h w 3"], box: tuple[float, float, float, float], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """A window (left, top, right, bottom) of an image, resized as PIL's BILINEAR does."""
    left, top, right, bottom = box
    first_x, first_y = math.floor(left), math.floor(top)
    window = pixels[first_y : math.ceil(bottom), first_x : math.ceil(right)]
    height, width, _ = window.shape
    source = ImageData(width, height, PixelType.U8x3, window.tobytes())
    target = ImageData(size, size, PixelType.U8x3)
    crop = CropBox(
        left - first_x,
        top - first_y,
        _at_most(right - left, left - first_x, width),
        _at_most(bottom - top, top - first_y, height),
    )
    # A Resizer keeps buffers: each call has its own, for several threads decode.
    Resizer().resize(source, target, ResizeOptions(_BILINEAR, False, crop))
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(size, size, 3)


def _at_most(length: float, start: float, end: int) -> float:
    """A length that, begun at `start`, does not pass `end` by a rounding error."""
    while start + length > end:
        length = math.nextafter(length, 0.0)
    return length


def _random_window(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """A window (left, top, right, bottom) of random area, shape and place, as in Inception."""
    log_ratio = np.log(_CROP_RATIO)
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(*_CROP_AREA)
        ratio = np.exp(rng.uniform(*log_ratio))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    # The image is too long or too high for any draw: the widest window of an allowed shape.
    w = min(width, round(height * _CROP_RATIO[1]))
    h = min(height, round(width / _CROP_RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
