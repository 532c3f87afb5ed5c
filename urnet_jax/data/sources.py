"""Where examples come from: scikit-learn's digits, or any dataset that TFDS has prepared."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from urnet_jax.data import datasets
from urnet_jax.data.datasets import DATASETS, dataset, nearest
from urnet_jax.data.decode import decode_whole, resized
from urnet_jax.data.maps import LabelMaps
from urnet_jax.data.records import Records, Undecodable, report_left_out
from urnet_jax.data.splits import Split
from urnet_jax.errors import UserError

_DIGITS_TEST = 360  # of the 1797 images
_READ_CHUNK = 1000  # records


def open_split(data: Any, split: str) -> Split:
    """Opens a split: decoded into memory, or left on its disk and decoded batch by batch.

    ImageNet is left on its disk, and so is any dataset that `random_resized_crop` augments, as it
    crops from the full image, and any with label maps. Images in memory are resized to
    `data.image_size`. Those that cannot be decoded are an error, or left out where
    `data.unreadable` is `skip`.

    Args:
      data: the config's section `data`.
      split: `train` or `test`. A dataset without a split `test` is tested on its `validation`, and
        so is ImageNet, the labels of whose `test` are secret.

    Raises:
      UserError: the dataset or the split is unknown, or `data.dir` holds no prepared dataset that
        fits; said at once, since nothing is ever downloaded.
    """
    if split not in ("train", "test"):
        raise UserError(f"The split is {split!r}; expected 'train' or 'test'.")
    if data.labels == "map":
        datasets.check(data)
    num_classes = dataset(data).num_classes
    if data.name == "digits":
        images, labels = _digits(split, data.image_size)
        return _in_memory(data.name, split, num_classes, images, labels)
    source = _open_tfds(data, split)
    label = source.dataset_info.features["label"]
    names = tuple(getattr(label, "names", None) or ())
    if names == tuple(map(str, range(len(names)))):  # which TFDS makes up where there are none
        names = ()
    if data.labels == "map":
        height, width = data.eval_size
        return Split(
            data.name, split, len(source), num_classes, (height, width, 3), source=source,
            class_names=names, maps=LabelMaps((height, width), num_classes, data.ignored_label),
            unreadable=data.unreadable,
        )  # fmt: skip
    if data.name == "imagenet2012" or data.augment == "random_resized_crop":
        shape = (data.image_size, data.image_size, 3)
        return Split(
            data.name, split, len(source), num_classes, shape, source=source, class_names=names,
            unreadable=data.unreadable,
        )  # fmt: skip
    records = Records(source, f"{data.name} {split}", num_classes)
    images, labels, bad = _decode_all(records, data.image_size, data.unreadable)
    held = _in_memory(data.name, split, num_classes, images, labels)
    return _without(dataclasses.replace(held, class_names=names), bad)


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
    images = np.stack([resized(Image.fromarray(image), image_size) for image in images])
    return images[..., None], labels[chosen].astype(np.int32)


def _decode_all(
    records: Records, image_size: int, unreadable: str
) -> tuple[np.ndarray, np.ndarray, list[Undecodable]]:
    """All images and labels, and those images that cannot be decoded."""
    count, bad = len(records.source), []
    images = np.empty((count, image_size, image_size, 3), np.uint8)
    labels = np.empty(count, np.int32)
    with tqdm(total=count, desc=records.title, unit=" images", delay=1, disable=None) as bar:
        for start in range(0, count, _READ_CHUNK):
            rows = range(start, min(start + _READ_CHUNK, count))
            found = records.fetch(rows)
            labels[rows.start : rows.stop] = records.labels(rows, found)

            def fill(k: int, start: int = start, found: Any = found) -> None:
                images[start + k] = decode_whole(found[k]["image"], image_size)

            bad += records.decode(rows, found, fill, unreadable=unreadable).values()
            bar.update(len(rows))
    return images, labels, bad


def _without(split: Split, bad: Sequence[Undecodable]) -> Split:
    """A split in memory without some of its examples; the others keep their numbers."""
    if not bad:
        return split
    if len(bad) == split.num_examples:
        raise UserError(f"No image of the split {split.title!r} can be decoded: {bad[0].sentence}")
    report_left_out(split.title, split.num_examples, bad)
    assert split.images is not None and split.labels is not None
    kept = np.setdiff1d(np.arange(split.num_examples), [each.number for each in bad])
    return dataclasses.replace(
        split, num_examples=len(kept), images=split.images[kept], labels=split.labels[kept],
        numbers=kept,
    )  # fmt: skip


def _open_tfds(data: Any, split: str) -> Any:
    """Random access to the records of a split, the images still encoded."""
    folder, stored = _prepared(data.name, data.dir, split)
    # Imported here because it takes a second, which digits should not pay for.
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(folder)
        metadata = dict(builder.info.metadata or {})
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder} cannot be read ({error}): prepare the dataset again.") from error
    features = builder.info.features
    maps = data.labels == "map"
    label = features["label"] if "label" in features else None
    _check_labels(folder, maps, label)
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if maps:
        kinds["label"] = tfds.features.Image  # of which LabeledImage is one
    for name, kind in kinds.items():
        if name not in features or not isinstance(features[name], kind):
            raise UserError(
                f"{folder} has no feature {name!r} of the kind tfds.features.{kind.__name__}: "
                f"{_remedy(data.name)}"
            )
    expected = dataset(data).num_classes
    found = getattr(label, "num_classes", None) or expected  # A map may not say how many.
    if found != expected:
        known = data.name in DATASETS
        remedy = _remedy(data.name) if known else f"set data.num_classes to {found}."
        raise UserError(f"{folder} has {found} classes, not {expected}: {remedy}")
    if maps:
        _check_ignored(folder, metadata.get(datasets.IGNORED, -1), data.ignored_label)
    encoded = ("image", "label") if maps else ("image",)
    return builder.as_data_source(
        split=stored, decoders={name: tfds.decode.SkipDecoding() for name in encoded}
    )


def _check_ignored(folder: epath.Path, prepared: int, ignored_label: int) -> None:
    """Refuses another ignored label than the maps were checked for; with -1 they have none."""
    if prepared not in (-1, ignored_label):
        raise UserError(
            f"{folder} was prepared for the ignored label {prepared}, and data.ignored_label is "
            f"{ignored_label}: set it to {prepared}, or prepare the dataset again."
        )


def _check_labels(folder: epath.Path, maps: bool, label: Any) -> None:
    """Refuses a prepared feature `label` of the other kind than `data.labels` says."""
    import tensorflow_datasets as tfds

    if maps and isinstance(label, tfds.features.ClassLabel):
        raise UserError(
            f"{folder} has one class for an image, and data.labels is 'map': set it to 'class', or "
            "prepare label maps with `urnet prepare`."
        )
    if not isinstance(label, tfds.features.Image):
        return
    if not maps:
        raise UserError(
            f"{folder} has label maps, and data.labels is 'class': set it to 'map', and "
            "data.eval_size to the height and width that images are evaluated at."
        )
    shape: Any = label.shape
    if shape[-1] != 1:
        raise UserError(
            f"{folder} has label maps of {shape[-1]} channels, where one of labels is "
            "expected: prepare them again with `urnet prepare`."
        )


def _prepared(name: str, data_dir: str, split: str) -> tuple[epath.Path, str]:
    """The folder of the dataset's newest version, checked to be complete, and the split's name.

    TFDS itself would look for a missing dataset on the network, and for minutes.
    """
    remedy = _remedy(name)
    info = _newest_info(name, data_dir)
    folder = info.parent
    try:
        content = json.loads(info.read_text())
        lengths = {s["name"]: len(s["shardLengths"]) for s in content["splits"]}
        prefix, file_format = content["name"], content.get("fileFormat", "tfrecord")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{info} is damaged ({error!r}): {remedy}") from error
    if file_format != "array_record":
        raise UserError(f"{folder} holds {file_format} files, not array_record: {remedy}")
    names = ["train"] if split == "train" else ["test", "validation"]
    if name == "imagenet2012" and split == "test":
        names = ["validation"]
    stored = next((name for name in names if name in lengths), None)
    if stored is None:
        raise UserError(
            f"{folder} has no split {' or '.join(names)}, only {', '.join(lengths) or 'none'}: "
            f"{remedy}"
        )
    found = len(list(folder.glob(f"{prefix}-{stored}.array_record*")))
    if found != lengths[stored]:
        raise UserError(
            f"{folder} holds {found} files of the split {stored!r} where its dataset_info.json "
            f"lists {lengths[stored]}: {remedy}"
        )
    return folder, stored


def _newest_info(name: str, data_dir: str) -> epath.Path:
    """The dataset_info.json of the newest version, such as 3.0.2, of a dataset in `data_dir`."""
    called = name
    if name not in DATASETS and (known := nearest(name)):
        called = f"{name} (the nearest known name is {known})"
    if not data_dir:
        raise UserError(
            f"data.dir is empty, but {called} is read from a TFDS directory: {_remedy(name)}"
        )
    folder = epath.Path(data_dir).expanduser() / name
    infos = list(folder.glob("*/dataset_info.json")) if folder.is_dir() else []
    infos = [info for info in infos if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)]
    if not infos:
        if epath.Path(data_dir).name == name:
            raise UserError(
                f"data.dir {data_dir!r} is the folder {name} itself; name the one that holds it, "
                f"{str(epath.Path(data_dir).parent)!r}."
            )
        raise UserError(f"data.dir {data_dir!r} holds no prepared {called}: {_remedy(name)}")
    return max(infos, key=lambda info: tuple(map(int, info.parent.name.split("."))))


def _remedy(name: str) -> str:
    how, version = "as docs/own_data.md shows", "1.0.0"
    if known := DATASETS.get(name):
        how, version = f"with `tfds build {name} --file_format=array_record`", known.version
    where = "--config.data.dir=DIR in training, --data_dir=DIR in evaluation"
    return f"prepare it {how}, or name a folder that holds {name}/{version} ({where})."
