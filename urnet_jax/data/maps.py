"""Images with label maps into pixels and labels, on the host and without JAX.

A label map is a file as large as its image: 8-bit grey, or a palette, whose indices are labels.
Image and map are scaled, cropped and mirrored alike; what is seen in training is a function of
(seed, epoch, example index) alone.
"""

import dataclasses
import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from urnet_jax.data import decode
from urnet_jax.data.datasets import IMAGENET
from urnet_jax.data.decode import BadImageError
from urnet_jax.streams import Stream

_SCALES = (0.5, 2.0)  # of training, in units of evaluation's
_PNG_DEPTH = 24  # the byte of a PNG that says how many bits a pixel has
_MEAN = np.rint(255 * np.array(IMAGENET[0])).astype(np.uint8)  # where there is no image


class BadMapError(ValueError):
    """A label map that is wrong, though it can be decoded.

    The message is a part of a sentence whose subject is the image: 'has a label map of ...'.

    Attributes:
      remedy: what to do, to which more may be added: 'correct the map'.
    """

    def __init__(self, message: str, remedy: str = "correct the map"):
        super().__init__(message)
        self.remedy = remedy


class Window(NamedTuple):
    """What is seen of a scaled image, in its pixels."""

    width: int  # of the whole scaled image
    height: int
    left: int
    top: int
    mirrored: bool


@dataclasses.dataclass(frozen=True)
class LabelMaps:
    """How files of images and of their label maps become arrays.

    Attributes:
      eval_size: height and width in pixels at which whole images are evaluated.
      num_classes: labels run from 0 to num_classes - 1.
      ignored_label: of pixels that count nowhere, -1 if there are none.
    """

    eval_size: tuple[int, int]
    num_classes: int
    ignored_label: int = -1

    def decode_eval(
        self, image: bytes, label_map: bytes
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Int32[np.ndarray, "h w"]]:
        """The whole image and its map, of `eval_size`.

        Both are scaled by one factor, so that they fit, and lie at the top left. What is missing
        at the right and at the bottom has ImageNet's mean colour and the label -1, and so has what
        is ignored.

        Raises:
          BadImageError: one of the files cannot be decoded.
          BadMapError: the map is wrong.
        """
        labels = self.opened(decode.size_of(image), label_map)
        window = Window(*self._scaled(labels, 1.0), left=0, top=0, mirrored=False)
        return self._seen(decode.decode_full(image), labels, window, self.eval_size)

    def whole(
        self, pixels: UInt8[np.ndarray, "image_h image_w 3"]
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Window]:
        """An image that has no map as `decode_eval` gives it, and where in that it lies."""
        empty = Image.new("L", (pixels.shape[1], pixels.shape[0]))
        window = Window(*self._scaled(empty, 1.0), left=0, top=0, mirrored=False)
        return self._seen(pixels, empty, window, self.eval_size)[0], window

    def decode_train(
        self, image: bytes, label_map: bytes, crop_size: int, seed: int, epoch: int, index: int
    ) -> tuple[UInt8[np.ndarray, "crop crop 3"], Int32[np.ndarray, "crop crop"]]:
        """A square of the image and its map, scaled at random and mirrored every second time.

        The factor is 0.5 to 2 times that of evaluation. What is missing at the bottom and at the
        right (mirrored: the left), where the scaled image is smaller, is as in `decode_eval`.

        Raises:
          BadImageError: one of the files cannot be decoded.
          BadMapError: the map is wrong.
        """
        labels = self.opened(decode.size_of(image), label_map)
        window = self.draw(labels, crop_size, seed, epoch, index)
        pixels = decode.decode_full(image, shrinkable=labels.width / window.width)
        return self._seen(pixels, labels, window, (crop_size, crop_size))

    def draw(
        self, labels: Image.Image, crop_size: int, seed: int, epoch: int, index: int
    ) -> Window:
        """What is seen of an image of the map's size in an epoch of training."""
        rng = np.random.default_rng((Stream.AUGMENTATION, seed, epoch, index))
        width, height = self._scaled(labels, rng.uniform(*_SCALES))
        left = int(rng.integers(max(0, width - crop_size) + 1))
        top = int(rng.integers(max(0, height - crop_size) + 1))
        return Window(width, height, left, top, mirrored=bool(rng.integers(2)))

    def opened(self, size: tuple[int, int], label_map: bytes) -> Image.Image:
        """The map of an image of this width and height, decoded and found to be right.

        Raises:
          BadImageError: it cannot be decoded.
          BadMapError: it is of another size or kind, or has a label that is none.
        """
        labels = _open(label_map)
        if labels.size != size:
            raise BadMapError(
                f"has a label map of {labels.width} x {labels.height} pixels, and "
                f"{size[0]} x {size[1]} itself"
            )
        found = np.flatnonzero(labels.histogram())
        wrong = found[(found >= self.num_classes) & (found != self.ignored_label)]
        if wrong.size:
            raise BadMapError(
                f"has the label {wrong[0]} in its map, which is none of the classes 0 to "
                f"{self.num_classes - 1}, and ignored_label is {self.ignored_label}",
                "set num_classes or ignored_label, or correct the map",
            )
        return labels

    def _scaled(self, labels: Image.Image, factor: float) -> tuple[int, int]:
        """Width and height by `factor` times what fits a map of this size into `eval_size`."""
        height, width = self.eval_size
        factor *= min(height / labels.height, width / labels.width)
        return max(1, round(labels.width * factor)), max(1, round(labels.height * factor))

    def _seen(
        self,
        pixels: UInt8[np.ndarray, "image_h image_w 3"],
        labels: Image.Image,
        window: Window,
        size: tuple[int, int],
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Int32[np.ndarray, "h w"]]:
        """The window's pixels and labels, of the height and width `size`."""
        image, label = np.empty((*size, 3), np.uint8), np.full(size, -1, np.int32)
        image[:] = _MEAN
        height = min(size[0], window.height - window.top)
        width = min(size[1], window.width - window.left)
        image[:height, :width] = _bilinear(pixels, window, height, width)
        nearest = _nearest(np.asarray(labels), window, height, width).astype(np.int32)
        label[:height, :width] = np.where(nearest == self.ignored_label, -1, nearest)
        return (image[:, ::-1], label[:, ::-1]) if window.mirrored else (image, label)


def _open(label_map: bytes) -> Image.Image:
    """The map in 8 bits, those of a palette being its indices."""
    try:
        with decode.decoding():
            labels = Image.open(io.BytesIO(label_map))
            labels.load()
    except BadImageError as error:
        raise BadImageError(f"its label map: {error}") from error
    if labels.format == "JPEG":
        raise BadMapError(
            "has a label map in JPEG, which changes labels", "save the map as PNG from its source"
        )
    if labels.format == "PNG" and labels.mode == "L" and label_map[_PNG_DEPTH] < 8:
        raise BadMapError(
            f"has a label map in grey of {label_map[_PNG_DEPTH]} bits, which readers scale in "
            "different ways",
            "save the map in 8 bits",
        )
    if labels.mode not in ("L", "P"):
        raise BadMapError(
            f"has a label map of the mode {labels.mode}, in colours or of other than 8 bits, where "
            "8-bit grey (L) or a palette (P) is expected"
        )
    return labels


def _bilinear(
    pixels: UInt8[np.ndarray, "image_h image_w 3"], window: Window, height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The image as PIL scales it, from the window's corner; no more of it is scaled."""
    down, across = pixels.shape[0] / window.height, pixels.shape[1] / window.width
    box = (
        window.left * across,
        window.top * down,
        min(pixels.shape[1], (window.left + width) * across),
        min(pixels.shape[0], (window.top + height) * down),
    )
    scaled = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, box)
    return np.asarray(scaled)


def _nearest(
    labels: UInt8[np.ndarray, "map_h map_w"], window: Window, height: int, width: int
) -> UInt8[np.ndarray, "height width"]:
    """The map, scaled, from the window's corner: of each pixel the label at its centre.

    In whole numbers: of centres that fall between two labels, PIL takes now one, now the other.
    """
    rows = (2 * (window.top + np.arange(height)) + 1) * labels.shape[0] // (2 * window.height)
    columns = (2 * (window.left + np.arange(width)) + 1) * labels.shape[1] // (2 * window.width)
    return labels[rows[:, None], columns]
