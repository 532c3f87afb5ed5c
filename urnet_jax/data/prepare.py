"""A prepared dataset, as TFDS has it, from a folder of images and label maps."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from urnet_jax.data import decode, pairs
from urnet_jax.data.datasets import DATASETS, IGNORED, check_ignored
from urnet_jax.data.decode import BadImageError
from urnet_jax.data.maps import BadMapError, LabelMaps
from urnet_jax.data.pairs import Pair
from urnet_jax.errors import UserError, make_folder

_VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A dataset that was prepared, and what a config says of it.

    Attributes:
      folder: where it lies.
      examples: how many, by split.
      fields: of the config's section `data`, by their names there.
    """

    folder: pathlib.Path
    examples: Mapping[str, int]
    fields: Mapping[str, Any]


def prepare(
    folder: str | pathlib.Path,
    data_dir: str | pathlib.Path,
    name: str,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    ignored_label: int | None = None,
) -> Prepared:
    """Makes a dataset of label maps, in array_record files, of a folder's images and maps.

    All images and maps are decoded before anything is written. Needs no TensorFlow.

    Args:
      folder: with images and maps, in a layout that `pairs.find` knows.
      data_dir: the folder in which the dataset gets a folder of its name.
      name: of the dataset, in small letters, digits and underscores.
      num_classes: labels run from 0 to num_classes - 1; may be left out with `class_names`, and
        with Cityscapes, which has 19.
      class_names: what the classes are called, in order; by default they have numbers only.
      ignored_label: of pixels that count nowhere; by default none, and 255 of Cityscapes.

    Returns:
      What was prepared.

    Raises:
      UserError: an argument is wrong, the folder is incomplete, a file cannot be decoded, a map is
        not as large as its image or has a label that is neither a class nor ignored, a split has
        no labels at all, or the dataset is there already.
    """
    data_dir = pathlib.Path(data_dir).expanduser()
    _check_name(name, data_dir)
    found = pairs.find(folder)
    names, ignored = tuple(class_names), -1 if ignored_label is None else ignored_label
    if found.cityscapes:
        names = names or pairs.CITYSCAPES_CLASSES
        ignored = pairs.CITYSCAPES_IGNORED if ignored_label is None else ignored_label
        _check_cityscapes(num_classes, names, ignored)
    num_classes = _num_classes(num_classes, names)
    check_ignored(num_classes, ignored, "--")
    eval_size = _check_files(found, num_classes, ignored)
    make_folder(data_dir, "--data_dir")
    _write(found, str(data_dir), name, list(names) or num_classes, ignored)
    return Prepared(
        pathlib.Path(data_dir) / name / _VERSION,
        {split: len(files) for split, files in found.splits.items()},
        {
            "name": name, "dir": str(data_dir), "num_classes": num_classes, "labels": "map",
            "ignored_label": ignored, "eval_size": eval_size, "augment": "scale_crop_flip",
        },
    )  # fmt: skip


def _check_name(name: str, data_dir: str | pathlib.Path) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"--name is {name!r}; expected small letters, digits and underscores, as camvid."
        )
    if name in DATASETS:
        raise UserError(f"--name is {name!r}, which is a known dataset; choose another.")
    there = pathlib.Path(data_dir) / name
    # TFDS takes an empty folder of that version as prepared too.
    if (there / _VERSION).exists() or any(there.glob("*/dataset_info.json")):
        raise UserError(
            f"{there} is prepared already; delete it to prepare it again, or choose another --name."
        )


def _check_cityscapes(num_classes: int | None, names: Sequence[str], ignored: int) -> None:
    classes = len(pairs.CITYSCAPES_CLASSES)
    wrong = num_classes not in (None, classes) or len(names) != classes
    if wrong or ignored != pairs.CITYSCAPES_IGNORED:
        raise UserError(
            f"Cityscapes has {classes} classes and the ignored label {pairs.CITYSCAPES_IGNORED}: "
            "leave out --num_classes, --class_names and --ignored_label, or name just these."
        )


def _num_classes(num_classes: int | None, names: Sequence[str]) -> int:
    if num_classes is None and not names:
        raise UserError("--num_classes is missing; say how many classes the maps have, as 11.")
    if names and len(set(names)) < len(names):
        raise UserError("--class_names has one name twice; each class needs its own.")
    if names and num_classes not in (None, len(names)):
        raise UserError(
            f"--num_classes is {num_classes}, and --class_names has {len(names)} names: name each "
            "class once, or leave out one of the two."
        )
    return len(names) if num_classes is None else num_classes


def _check_files(found: pairs.Folder, num_classes: int, ignored_label: int) -> tuple[int, int]:
    """Looks through all pairs; height and width of most images that are tested on."""
    sizes: dict[str, collections.Counter[tuple[int, int]]] = {}
    checked = LabelMaps((1, 1), num_classes, ignored_label)
    with _bar("check", found) as bar, concurrent.futures.ThreadPoolExecutor() as pool:
        for split, files in found.splits.items():
            sizes[split], counted = collections.Counter(), False
            for size, has_class in pool.map(functools.partial(_checked, checked), files):
                sizes[split][size] += 1
                counted |= has_class
                bar.update()
            if not counted:
                raise UserError(
                    f"No pixel of the split {split!r} has a class in its label map, the first of "
                    f"them {files[0].label_map}: correct the maps, or --ignored_label."
                )
    tested = sizes["test" if "test" in sizes else "validation"]
    return tested.most_common(1)[0][0]


def _checked(checked: LabelMaps, pair: Pair) -> tuple[tuple[int, int], bool]:
    """Height and width of a pair, found to be right, and whether a pixel of it has a class."""
    # Every label id is known: one without a train id is ignored.
    maps = LabelMaps((1, 1), 256) if pair.label_ids else checked
    classes = pairs.CITYSCAPES_TRAIN_IDS if pair.label_ids else range(checked.num_classes)
    try:
        height, width, _ = decode.decode_full(_read(pair.image)).shape
        counts = maps.opened((width, height), _read(pair.label_map)).histogram()
    except BadImageError as error:
        raise UserError(f"{pair.image} cannot be decoded ({error}): mend or remove it.") from error
    except BadMapError as error:
        raise UserError(f"{pair.image} {error}: {error.remedy} {pair.label_map}.") from error
    return (height, width), any(counts[label] for label in classes)


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): mend or remove it.") from error


def _map_file(pair: Pair) -> bytes:
    """The file of a pair's map, renumbered where it has label ids."""
    if not pair.label_ids:
        return _read(pair.label_map)
    table = np.full(256, pairs.CITYSCAPES_IGNORED, np.uint8)
    table[list(pairs.CITYSCAPES_TRAIN_IDS)] = list(pairs.CITYSCAPES_TRAIN_IDS.values())
    with Image.open(pair.label_map) as labels:
        renumbered = table[np.asarray(labels)]
    buffer = io.BytesIO()
    Image.fromarray(renumbered).save(buffer, "PNG")
    return buffer.getvalue()


def _write(
    found: pairs.Folder, data_dir: str, name: str, labels: list[str] | int, ignored_label: int
) -> None:
    import tensorflow_datasets as tfds

    class Maps(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(_VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.LabeledImage(labels=labels),
                    "file_name": tfds.features.Text(),
                }
            )
            known = tfds.core.MetadataDict({IGNORED: ignored_label})
            return tfds.core.DatasetInfo(builder=self, features=features, metadata=known)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager
            return {s: self._generate_examples(files) for s, files in found.splits.items()}

        def _generate_examples(self, files: Sequence[Pair]) -> Iterator[tuple[str, Any]]:
            for pair in files:
                record = {"image": _read(pair.image), "label": _map_file(pair)}
                yield pair.name, {**record, "file_name": pair.name}
                bar.update()

    Maps.name = name
    with _bar("write", found) as bar:
        _quietly(Maps(data_dir=data_dir, file_format="array_record").download_and_prepare, data_dir)


def _quietly(download_and_prepare: Callable[[], None], data_dir: str) -> None:
    """Without what TFDS prints, of downloads, and its bars, one for each split and shard."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            download_and_prepare()
    except OSError as error:
        raise UserError(
            f"{data_dir} cannot be written ({error}): make room, or name another --data_dir."
        ) from error
    finally:
        tfds.enable_progress_bar()


def _bar(what: str, found: pairs.Folder) -> tqdm:
    count = sum(map(len, found.splits.values()))
    return tqdm(total=count, desc=what, unit=" images", delay=1, disable=None)
