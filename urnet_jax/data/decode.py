"""Image files into pixels, on the host and without JAX: decoding processes need none.

Every random number is a function of (seed, epoch, example index) alone, so that a crop depends
neither on the batch it is in nor on the number of processes, threads or restarts.

No more pixels are decoded than PIL would, `2 * PIL.Image.MAX_IMAGE_PIXELS`, which is 178,956,970
unless a program sets another limit; PIL warns from half of that on.
"""

import contextlib
import io
import math
from collections.abc import Iterator

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
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from urnet_jax.streams import Stream

_CROP_AREA = (0.08, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10
_EVAL_RESIZE = 256 / 224
_BILINEAR = ResizeAlg.convolution(FilterType.bilinear)


class BadImageError(ValueError):
    """A file cannot be decoded; the message says why, in a part of a sentence."""


def decode_train(
    file: bytes, image_size: int, seed: int, epoch: int, index: int
) -> UInt8[np.ndarray, "image_size image_size 3"]:
    """Decodes, crops a random window (8 to 100 % of the area, 3:4 to 4:3), and resizes it.

    `augment.augment_images` mirrors it on the device, for which it costs next to nothing.

    Of a JPEG whose window is at least four times as large as what is asked for, no more than a
    half, a quarter or an eighth of each side is decoded; the rest is resized away as PIL would.

    Raises:
      BadImageError: the file cannot be decoded.
    """
    with decoding():
        width, height = size_of(file)
        left, top, right, bottom = draw_window(width, height, seed, epoch, index)
        pixels = _decode(file, width, height, min(right - left, bottom - top) / image_size)
        h, w, _ = pixels.shape
        box = left * w / width, top * h / height, right * w / width, bottom * h / height
        return _resized_crop(pixels, box, image_size)


def draw_window(
    width: int, height: int, seed: int, epoch: int, index: int
) -> tuple[int, int, int, int]:
    """The window (left, top, right, bottom) of an image of this size in an epoch."""
    rng = np.random.default_rng((Stream.AUGMENTATION, seed, epoch, index))
    return _random_window(rng, width, height)


def decode_eval(file: bytes, image_size: int) -> UInt8[np.ndarray, "image_size image_size 3"]:
    """Decodes, resizes the shorter side to image_size * 256 / 224, and crops the centre.

    Raises:
      BadImageError: the file cannot be decoded.
    """
    with decoding():
        image = _rgb(Image.open(io.BytesIO(file)))
        width, height = image.size
        shorter = round(image_size * _EVAL_RESIZE)
        factor = shorter / min(width, height)
        # int, not round, as torchvision does, whose weights are to be evaluated as published.
        width, height = max(shorter, int(width * factor)), max(shorter, int(height * factor))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - image_size) / 2), round((height - image_size) / 2)
        return np.asarray(image.crop((left, top, left + image_size, top + image_size)))


def decode_whole(file: bytes, image_size: int) -> UInt8[np.ndarray, "image_size image_size 3"]:
    """Decodes, and resizes the whole image to a square, whatever its shape.

    Raises:
      BadImageError: the file cannot be decoded.
    """
    with decoding():
        return resized(_rgb(Image.open(io.BytesIO(file))), image_size)


def decode_full(file: bytes, shrinkable: float = 1.0) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image in its own size.

    A JPEG that is to be smaller by the factor `shrinkable` is decoded at a half, a quarter or an
    eighth of its sides, at least twice as large as it is to be.

    Raises:
      BadImageError: the file cannot be decoded.
    """
    with decoding():
        return _decode(file, *size_of(file), shrinkable)


def resized(image: Image.Image, image_size: int) -> UInt8[np.ndarray, "image_size image_size ..."]:
    """The whole image as a square; without a change of size these are its very pixels."""
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR))


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Turns whatever a decoder raises on a file into a BadImageError."""
    try:
        yield
    except (BadImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError(
            f"it has more than {_most_pixels():,} pixels: make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise BadImageError("it is in no format that PIL knows") from error
    except Exception as error:  # Of a damaged file PIL's decoders raise errors of many kinds.
        raise BadImageError(str(error) or repr(error)) from error


def _most_pixels() -> float:
    return 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else math.inf


def _rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB; of 16 bits the higher eight remain, as PIL does it for colours."""
    if image.mode == "F":
        raise BadImageError("its pixels are floats, and nothing says which one is white")
    if image.mode.startswith("I"):  # Grey, of 16 bits, which PIL's convert would clip at 255.
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() >= 2**16:
            raise BadImageError("its pixels are integers of more than 16 bits")
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    return image.convert("RGB")


def size_of(file: bytes) -> tuple[int, int]:
    """Width and height, from the file's header.

    Raises:
      BadImageError: it cannot be read, or there are too many pixels.
    """
    with decoding():
        try:
            height, width = map(int, simplejpeg.decode_jpeg_header(file)[:2])
        except ValueError:  # Not a JPEG.
            return Image.open(io.BytesIO(file)).size
        if width * height > _most_pixels():  # Which PIL would not open.
            raise Image.DecompressionBombError
        return width, height


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
        return np.asarray(_rgb(Image.open(io.BytesIO(file))))


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
