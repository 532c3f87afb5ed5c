"""Records of a prepared dataset: how they are read, decoded, and named where they are bad."""

import concurrent.futures
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32
from tqdm import tqdm

from urnet_jax.data.decode import BadImageError
from urnet_jax.data.maps import BadMapError
from urnet_jax.errors import UserError

UNREADABLE = ("error", "skip")
"""What becomes of an image that cannot be decoded: it ends the program, or is left out."""

# Features in which datasets keep the name of an image's file, or what they know it by.
_NAMES = ("file_name", "filename", "image/filename", "path", "key", "id", "image_id", "image/id")

_NAMED = 20  # images that cannot be decoded; further ones are only counted


@dataclasses.dataclass(frozen=True)
class Undecodable:
    """An image that cannot be decoded: its number in the split, and a sentence about it."""

    number: int
    sentence: str


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The records of a split, with an encoded `image` and a `label`.

    Attributes:
      source: random access to them.
      title: the dataset's name and the split's, for people.
      num_classes: labels run from 0 to num_classes - 1.
    """

    source: Any
    title: str
    num_classes: int

    def fetch(self, index: Sequence[int]) -> list[dict[str, Any]]:
        """The records at `index`.

        Raises:
          UserError: one of them cannot be read from its file.
        """
        try:
            return self._fetch(index)
        except UserError:
            for i in index:  # To find out which it was.
                self._fetch([i])
            raise

    def labels(
        self, index: Sequence[int], records: Sequence[dict[str, Any]]
    ) -> Int32[np.ndarray, " b"]:
        """Their labels.

        Raises:
          UserError: an image has none, which TFDS writes as -1, or one that is no class.
        """
        labels = np.array([record["label"] for record in records], np.int64)
        for k in np.flatnonzero((labels < 0) | (labels >= self.num_classes))[:1]:
            image = self.called(index[k], records[k])
            if labels[k] == -1:
                raise UserError(
                    f"{image} has no label: prepare the dataset again, with labels or without "
                    "that split."
                )
            raise UserError(
                f"{image} has the label {labels[k]}, and the dataset's {self.num_classes} classes "
                f"are 0 to {self.num_classes - 1}: prepare the dataset again."
            )
        return labels.astype(np.int32)

    def decode(
        self,
        index: Sequence[int],
        records: Sequence[dict[str, Any]],
        decode: Callable[[int], None],
        *,
        unreadable: str,
        threads: int = 1,
    ) -> dict[int, Undecodable]:
        """Decodes records, each of them once.

        Args:
          index: of the records.
          records: of `fetch`.
          decode: f(k) decodes the k-th of them into where it belongs, or leaves that alone and
            raises a BadImageError or a BadMapError.
          unreadable: of UNREADABLE.
          threads: that decode.

        Returns:
          Those that cannot be decoded, by their place among these.

        Raises:
          UserError: one cannot be decoded, and `unreadable` is `error`; or a label map is wrong.
        """
        bad: dict[int, Undecodable] = {}

        def fill(k: int) -> None:
            try:
                decode(k)
            except BadMapError as error:
                raise UserError(
                    f"{self.called(index[k], records[k])} {error}: {error.remedy} and prepare the "
                    "dataset again."
                ) from error
            except BadImageError as error:
                sentence = f"{self.called(index[k], records[k])} cannot be decoded ({error})"
                if unreadable == "error":
                    raise UserError(
                        f"{sentence}: mend or remove it and prepare the dataset again, or leave "
                        "such images out with data.unreadable='skip'."
                    ) from error
                bad[k] = Undecodable(int(index[k]), f"{sentence}.")

        mapped = _pool(threads).map if threads > 1 else map
        for _ in mapped(fill, range(len(records))):
            pass
        return dict(sorted(bad.items()))

    def called(self, number: int, record: dict[str, Any] | None = None) -> str:
        """For people: 'Image 7 (daisy/1.jpg) of the split 'flowers train''."""
        name = _name(record or {}) or self._place(int(number))
        return f"Image {number}{f' ({name})' if name else ''} of the split {self.title!r}"

    def _fetch(self, index: Sequence[int]) -> list[dict[str, Any]]:
        try:
            return self.source.__getitems__([int(i) for i in index])
        except (RuntimeError, OSError, ValueError) as error:
            where = self.called(index[0]) if len(index) == 1 else f"The split {self.title!r}"
            raise UserError(
                f"{where} cannot be read ({error}): prepare the dataset again."
            ) from error

    def _place(self, number: int) -> str:
        """The file of the prepared dataset that holds a record, and its number there."""
        info = getattr(self.source, "dataset_info", None)
        split = getattr(self.source, "split", None)
        if info is None or split not in info.splits:
            return ""
        stored = info.splits[split]
        for length, file in zip(stored.shard_lengths, stored.filenames, strict=True):
            if number < length:
                return f"record {number} of {file}"
            number -= length
        return ""


class Replaced:
    """Counts the images of a split that others replace, and names each once on stderr."""

    def __init__(self, title: str):
        self._title = title
        self._numbers: set[int] = set()

    def add(self, bad: Sequence[Undecodable]) -> None:
        for each in bad:
            if each.number in self._numbers:
                continue
            self._numbers.add(each.number)
            if len(self._numbers) <= _NAMED:
                _warn(each.sentence)
            elif len(self._numbers) == _NAMED + 1:
                _warn("Further images that cannot be decoded are counted, but not named.")

    def close(self) -> None:
        """Says how many they were."""
        if count := len(self._numbers):
            _warn(
                f"{count} different image{'s' if count > 1 else ''} of the split {self._title!r} "
                "could not be decoded; in place of each the next one was taken."
            )
        self._numbers.clear()


def report_left_out(title: str, num_examples: int, bad: Sequence[Undecodable]) -> None:
    """Says on stderr how many of a split's images were left out, and which was the first."""
    _warn(
        f"{len(bad)} of the {num_examples} images of the split {title!r} cannot be decoded and "
        f"are left out; the first: {bad[0].sentence}"
    )


def _warn(sentence: str) -> None:
    tqdm.write(f"warning: {sentence}", file=sys.stderr)


def _name(record: dict[str, Any]) -> str:
    """What the record says that its image is called, empty where it says nothing."""
    texts = [name for name, value in record.items() if isinstance(value, bytes | str)]
    for name in (*(name for name in _NAMES if name in record), *texts):
        if name not in ("image", "label"):
            value = record[name]
            return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return ""


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="decode")
