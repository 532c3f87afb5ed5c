"""A split of a dataset; how examples are taken out of one, and found again."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt8

from urnet_jax.data import decode as decode_lib
from urnet_jax.data.maps import LabelMaps
from urnet_jax.data.records import Records, Undecodable
from urnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split of a dataset: its images and labels in memory, or a source to read them from.

    Attributes:
      dataset: its name, the config's `data.name`.
      name: `train` or `test`.
      num_examples: in the split.
      num_classes: labels run from 0 to num_classes - 1.
      image_shape: height, width and channels of an image as evaluation sees it.
      images: all of them, if they are held in memory.
      labels: theirs; of label maps with -1 for what counts nowhere.
      source: else, random access to records with an encoded `image` and a `label`.
      numbers: each example's number in the split that it is from, where that is another.
      class_names: what the classes are called, in order; empty where they have numbers only.
      maps: how label maps are read, None where an image has one class.
      unreadable: what becomes of an image of `source` that cannot be decoded: an `error`, or a
        `skip`, see docs/own_data.md.
    """

    dataset: str
    name: str
    num_examples: int
    num_classes: int
    image_shape: tuple[int, int, int]
    images: UInt8[np.ndarray, "n h w c"] | None = None
    labels: Int32[np.ndarray, "n *label"] | None = None
    source: Any = None
    numbers: Int[np.ndarray, " n"] | None = None
    class_names: tuple[str, ...] = ()
    maps: LabelMaps | None = None
    unreadable: str = "error"

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Of a label: () of a class, height and width of a label map as evaluation sees it."""
        return self.maps.eval_size if self.maps else ()

    @property
    def title(self) -> str:
        """The dataset's name and the split's, for people."""
        return f"{self.dataset} {self.name}"


def read(
    split: Split,
    index: Int64[np.ndarray, " b"],
    decode: Callable[[dict[str, Any], int], Any],
    threads: int = 1,
    size: tuple[int, int] | None = None,
) -> tuple[UInt8[np.ndarray, "b h w c"], Int32[np.ndarray, "b *label"], dict[int, Undecodable]]:
    """Images and labels of the examples at `index`.

    Args:
      split: to read from.
      index: places of examples in it.
      decode: f(record, k) -> pixels of the k-th of these examples, and its label map too where
        there are such; not asked for images in memory.
      threads: that decode.
      size: height and width that `decode` gives; by default those of `split.image_shape`.

    Returns:
      Images, labels, and those of them that cannot be decoded, by place; their images are black,
      their label maps all -1.

    Raises:
      UserError: an example cannot be read, has no class or a wrong label map, or it cannot be
        decoded and `split.unreadable` is `error`.
    """
    if split.images is not None and split.labels is not None:
        return split.images[index], split.labels[index], {}
    records, numbers = Records(split.source, split.title, split.num_classes), index.tolist()
    found = records.fetch(numbers)
    height, width, channels = split.image_shape
    height, width = size or (height, width)
    images = np.zeros((len(index), height, width, channels), np.uint8)
    if split.maps:
        labels = np.full((len(index), height, width), -1, np.int32)
    else:
        labels = records.labels(numbers, found)

    def fill(k: int) -> None:
        if split.maps:
            images[k], labels[k] = decode(found[k], k)
        else:
            images[k] = decode(found[k], k)

    bad = records.decode(numbers, found, fill, unreadable=split.unreadable, threads=threads)
    return images, labels, bad


def read_for_evaluation(
    split: Split, index: Int64[np.ndarray, " b"], threads: int = 1
) -> tuple[UInt8[np.ndarray, "b h w c"], Int32[np.ndarray, "b *label"], dict[int, Undecodable]]:
    """`read`, with images and label maps as evaluation sees them."""
    return read(split, index, lambda record, _: decode_for_evaluation(split, record), threads)


def decode_for_evaluation(split: Split, record: dict[str, Any]) -> Any:
    """A record's pixels as evaluation sees them, and its label map too where there are such.

    Raises:
      BadImageError: they cannot be decoded.
      BadMapError: the map is wrong.
    """
    if split.maps:
        return split.maps.decode_eval(record["image"], record["label"])
    return decode_lib.decode_eval(record["image"], split.image_shape[0])


def examples(
    split: Split, index: Int64[np.ndarray, " b"], threads: int = 1
) -> tuple[UInt8[np.ndarray, "b h w c"], Int32[np.ndarray, "b *label"]]:
    """Images as evaluation sees them, and labels or label maps, of the examples at `index`.

    Raises:
      UserError: one of them cannot be read or decoded, whatever `split.unreadable` is.
    """
    strict = dataclasses.replace(split, unreadable="error")
    images, labels, _ = read_for_evaluation(strict, index, threads)
    return images, labels


class _Part:
    """Some of a source's records, in an order of their own."""

    def __init__(self, source: Any, index: Int64[np.ndarray, " b"]) -> None:
        self._source, self._index = source, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitems__(self, places: Sequence[int]) -> Any:
        return self._source.__getitems__([int(self._index[place]) for place in places])


def take(split: Split, index: Int64[np.ndarray, " b"]) -> Split:
    """The examples at `index` as a split of their own, in which each keeps its number.

    They are in memory, and those that cannot be decoded are left out where `split.unreadable` is
    `skip`; but whole images with label maps stay on their disk.

    Raises:
      UserError: see `read`.
    """
    if split.maps is not None and split.source is not None:
        numbers = np.asarray(index) if split.numbers is None else split.numbers[index]
        part = _Part(split.source, np.asarray(index))
        return dataclasses.replace(split, num_examples=len(part), source=part, numbers=numbers)
    images, labels, bad = read_for_evaluation(split, index)
    kept = np.setdiff1d(np.arange(len(index)), list(bad))
    index = np.asarray(index)[kept]
    return dataclasses.replace(
        split, num_examples=len(index), images=images[kept], labels=labels[kept], source=None,
        # Of a part of a part, those in the whole: what is drawn for an example hangs on its number.
        numbers=index if split.numbers is None else split.numbers[index],
    )  # fmt: skip


def places(split: Split, samples: Int[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
    """Where in a split, or a subset of one, the samples of these numbers lie.

    Raises:
      UserError: it has none of such a number.
    """
    numbers = np.arange(split.num_examples) if split.numbers is None else split.numbers
    missing = samples[~np.isin(samples, numbers)]
    if missing.size:
        if split.numbers is not None:
            raise UserError(
                f"Sample {missing[0]} is not in this subset of {len(numbers)} samples of split "
                f"{split.name} of {split.dataset}: pass the whole split, or another sample."
            )
        raise UserError(
            f"The sample is {missing[0]}; the split {split.name} of {split.dataset} has 0 to "
            f"{numbers[-1]}."
        )
    order = np.argsort(numbers)
    return order[np.searchsorted(numbers, samples, sorter=order)]
