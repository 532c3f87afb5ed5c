"""Real TFDS datasets of a few images, and the files that they are made of."""

import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def encoded(image: Image.Image, file_format: str = "PNG", **settings: Any) -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **settings)
    return buffer.getvalue()


def prepare(
    data_dir: pathlib.Path,
    name: str,
    splits: Mapping[str, int],
    num_classes: int = 10,
    *,
    labelled: bool = True,
    named: bool = False,
    files: Mapping[int, bytes] | None = None,
) -> None:
    """Makes a dataset of grey PNG files: the first digits, so many for each split.

    With `named` each record has the feature `file_name`. `files` are other files, by the number of
    the digit that they replace.
    """
    import tensorflow_datasets as tfds

    bunch: Any = load_digits()
    others = files or {}

    class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image, label = tfds.features.Image(), tfds.features.ClassLabel(num_classes=num_classes)
            features = {"image": image, "label": label}
            if named:
                features["file_name"] = tfds.features.Text()
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(count) for split, count in splits.items()}

        def _generate_examples(self, count):
            for i in range(count):
                image = Image.fromarray(bunch.images[i].astype(np.uint8))
                record: dict[str, Any] = {"image": others.get(i) or encoded(image)}
                record["label"] = int(bunch.target[i]) if labelled else -1
                yield i, record | ({"file_name": f"digits/{i}.png"} if named else {})

    Own.name = name
    Own(data_dir=data_dir, file_format="array_record").download_and_prepare()
