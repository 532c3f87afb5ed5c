"""Where examples come from: scikit-learn's digits, or a prepared TFDS directory."""

import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int32, UInt8
from PIL import Image
from tqdm import tqdm

from urnet_jax.errors import UserError

EXAMPLE_FOLDERS = {
    "cifar10": "cifar10/3.0.2",
    "cifar100": "cifar100/3.0.2",
    "imagenet2012": "imagenet2012/5.1.0",
}
_DIGITS_TEST = 360  # of the 1797 images
_READ_CHUNK = 1000  # records


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split of a dataset: its images and labels in memory, or a source to read them from.

    Attributes:
      dataset: `digits`, `cifar10`, `cifar100` or `imagenet2012`.
      name: `train` or `test`.
      num_examples: in the split.
      num_classes: labels run from 0 to num_classes - 1.
      image_shape: height, width and channels of a prepared image.
      images: all of them, if they are held in memory.
      labels: theirs.
      source: else, random access to records with an encoded `image` and a `label`.
    """

    dataset: str
    name: str
    num_examples: int
    num_classes: int
    image_shape: tuple[int, int, int]
    images: UInt8[np.ndarray, "n h w c"] | None = None
    labels: Int32[np.ndarray, " n"] | None = None
    source: Any = None


def open_split(data: Any, split: str) -> Split:
    """Opens a split; digits and CIFAR are decoded into memory, ImageNet is left on its disk.

    Images in memory that are not of `data.image_size` are resized to it.

    Args:
      data: the config's section `data`.
      split: `train` or `test`; ImageNet's 50,000 validation images are its `test`.

    Raises:
      UserError: the dataset or the split is unknown, or `data.dir` holds no prepared dataset; said
        at once, since nothing is ever downloaded.
    """
    if split not in ("train", "test"):
        raise UserError(f"The split is {split!r}; expected 'train' or 'test'.")
    if data.name == "digits":
        images, labels = _digits(split, data.image_size)
        return _in_memory(data.name, split, 10, images, labels)
    if data.name not in EXAMPLE_FOLDERS:
        known = ", ".join(("digits", *EXAMPLE_FOLDERS))
        raise UserError(f"data.name is {data.name!r}; expected one of {known}.")
    is_imagenet = data.name == "imagenet2012"
    source = _open_tfds(
        data.name, data.dir, "validation" if is_imagenet and split == "test" else split
    )
    num_classes = source.dataset_info.features["label"].num_classes
    if is_imagenet:
        shape = (data.image_size, data.image_size, 3)
        return Split(data.name, split, len(source), num_classes, shape, source=source)
    images, labels = _decode_all(source, data.image_size, f"{data.name} {split}")
    return _in_memory(data.name, split, num_classes, images, labels)


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Turns the errors of readers and decoders on damaged files into a UserError about `what`."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise UserError(f"{what} cannot be read ({error}): prepare the dataset again.") from error


def _in_memory(
    dataset: str, name: str, num_classes: int, images: np.ndarray, labels: np.ndarray
) -> Split:
    height, width, channels = images.shape[1:]
    shape = (height, width, channels)
    return Split(dataset, name, len(images), num_classes, shape, images=images, labels=labels)


def _digits(split: str, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The 8x8 scans of the split, scaled from 0..16 to 0..255, and their labels."""
    # Imported here because it takes seconds, which no other dataset should pay for.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    pixels, labels = digits.data, digits.target
    chosen = train_test_split(
        np.arange(len(labels)), test_size=_DIGITS_TEST, random_state=0, stratify=labels
    )[0 if split == "train" else 1]
    images = np.rint(pixels[chosen] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    images = np.stack([_resized(Image.fromarray(image), image_size) for image in images])
    return images[..., None], labels[chosen].astype(np.int32)


def _decode_all(source: Any, image_size: int, title: str) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(source), image_size, image_size, 3), np.uint8)
    labels = np.empty(len(source), np.int32)
    with tqdm(total=len(source), desc=title, unit=" images", delay=1, disable=None) as bar:
        for start in range(0, len(source), _READ_CHUNK):
            rows = range(start, min(start + _READ_CHUNK, len(source)))
            with readable(f"The split {title!r}"):
                records = source.__getitems__(list(rows))
            for row, record in zip(rows, records, strict=True):
                with readable(f"Image {row} of the split {title!r}"):
                    image = Image.open(io.BytesIO(record["image"])).convert("RGB")
                images[row], labels[row] = _resized(image, image_size), record["label"]
            bar.update(len(rows))
    return images, labels


def _resized(image: Image.Image, image_size: int) -> np.ndarray:
    # Without a change of size, resize returns the very pixels.
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR))


def _open_tfds(name: str, data_dir: str, split: str) -> Any:
    version = _prepared_version(name, data_dir, split)
    # Imported here because it takes a second, which digits should not pay for.
    import tensorflow_datasets as tfds

    return tfds.data_source(
        f"{name}:{version}",
        data_dir=epath.Path(data_dir).expanduser(),
        split=split,
        download=False,
        decoders={"image": tfds.decode.SkipDecoding()},
    )


def _prepared_version(name: str, data_dir: str, split: str) -> str:
    """The newest version of the dataset under `data_dir`, such as '3.0.2', checked to be readable.

    TFDS itself would look for a missing dataset on the network, and for minutes.
    """
    remedy = (
        f"prepare it with `tfds build {name} --file_format=array_record`, or point "
        f"--config.data.dir at a folder that holds {EXAMPLE_FOLDERS[name]}."
    )
    if not data_dir:
        raise UserError(f"data.dir is empty, but {name} is read from a TFDS directory: {remedy}")
    folder = epath.Path(data_dir).expanduser() / name
    infos = list(folder.glob("*/dataset_info.json")) if folder.is_dir() else []
    infos = [info for info in infos if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)]
    if not infos:
        raise UserError(f"data.dir {data_dir!r} holds no prepared {name}: {remedy}")
    info = max(infos, key=lambda info: tuple(map(int, info.parent.name.split("."))))
    try:
        content = json.loads(info.read_text())
        lengths = {s["name"]: len(s["shardLengths"]) for s in content["splits"]}
        file_format = content.get("fileFormat", "tfrecord")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{info} is damaged ({error!r}): {remedy}") from error
    if file_format != "array_record":
        raise UserError(f"{info.parent} holds {file_format} files, not array_record: {remedy}")
    found = len(list(info.parent.glob(f"{name}-{split}.array_record*")))
    if found == 0 or found != lengths.get(split):
        expected = lengths.get(split, "no")
        raise UserError(
            f"{info.parent} holds {found} files of the split {split!r} where its "
            f"dataset_info.json lists {expected}: {remedy}"
        )
    return info.parent.name
