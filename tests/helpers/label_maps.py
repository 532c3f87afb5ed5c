"""Images whose colours tell their labels, with label maps, as files and as prepared datasets."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from helpers.data_batches import section
from helpers.own_data import encoded

CELL = 16  # pixels of a side
CLASSES = 24  # which a map has, one in each cell of 4 x 6
IGNORED = 200
MEAN = (124, 116, 104)  # ImageNet's, of 255

Pair = tuple[bytes, bytes]


def labels_of(wide: bool = True) -> np.ndarray:
    """A map of 64 x 96 pixels, or 96 x 64: a class in each cell but one, which is ignored."""
    cells = np.arange(CLASSES, dtype=np.uint8).reshape(4, 6)
    cells = np.where(cells == 7, np.uint8(IGNORED), cells)
    return np.kron(cells if wide else cells.T, np.ones((CELL, CELL), np.uint8))


def colours_of(labels: np.ndarray) -> np.ndarray:
    """Pixels that tell the label: 8 times as much red, and the rest in green; blue is 255."""
    labels = labels.astype(np.int32)
    red = np.where(labels == IGNORED, 250, 8 * labels)
    return np.stack([red, 255 - red, np.full_like(red, 255)], -1).astype(np.uint8)


def pair(wide: bool = True) -> tuple[Image.Image, Image.Image]:
    """An image and its map."""
    labels = labels_of(wide)
    return Image.fromarray(colours_of(labels)), Image.fromarray(labels)


def files(count: int) -> list[Pair]:
    """So many pairs of files, each second one upright."""
    found = []
    for i in range(count):
        image, labels = pair(wide=i % 2 == 0)
        found.append((encoded(image), encoded(labels)))
    return found


def write_folder(root: pathlib.Path, splits: Mapping[str, Sequence[Pair]]) -> pathlib.Path:
    """ROOT/SPLIT/{images,labels}/NUMBER.png of pairs of files."""
    for split, found in splits.items():
        for name in ("images", "labels"):
            (root / split / name).mkdir(parents=True)
        for i, (image, labels) in enumerate(found):
            (root / split / "images" / f"{i}.png").write_bytes(image)
            (root / split / "labels" / f"{i}.png").write_bytes(labels)
    return root


def build(
    data_dir: pathlib.Path, name: str, splits: Mapping[str, Sequence[Pair]], label: Any = None
) -> None:
    """Prepares a dataset of pairs of files, whatever they hold; `label` is its feature."""
    import tensorflow_datasets as tfds

    class Maps(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": label or tfds.features.LabeledImage(labels=CLASSES),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(found) for split, found in splits.items()}

        def _generate_examples(self, found):
            for i, (image, labels) in enumerate(found):
                yield i, {"image": image, "label": labels, "file_name": f"{i}.png"}

    Maps.name = name
    Maps(data_dir=data_dir, file_format="array_record").download_and_prepare()


def maps_section(data_dir: pathlib.Path, name: str, **fields: Any) -> Any:
    """The section `data` of a config for such a dataset."""
    known = {
        "name": name, "dir": str(data_dir), "num_classes": CLASSES, "labels": "map",
        "ignored_label": IGNORED, "eval_size": (50, 60), "augment": "scale_crop_flip",
        "image_size": 48, "batch_size": 8, "threads": 2,
    }  # fmt: skip
    return section(**known | fields)


def names(source: Any) -> list[str]:
    """What the examples of a prepared split are called, in its order."""
    return [r["file_name"].decode() for r in source.__getitems__(list(range(len(source))))]
