"""Label maps that are wrong, that cannot be decoded, or that a config does not expect."""

import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import label_maps
from helpers.data_batches import joined, section, take
from helpers.label_maps import CLASSES, IGNORED, maps_section
from helpers.own_data import encoded
from helpers.own_data import prepare as prepare_classes
from urnet_jax.data import datasets
from urnet_jax.data.batches import eval_batches, train_batches
from urnet_jax.data.sources import open_split
from urnet_jax.errors import UserError

WIDE = label_maps.pair()
RED, BLUE = Image.new("RGB", WIDE[1].size, "red"), Image.new("I;16", WIDE[1].size)


def other_label(value: int) -> bytes:
    labels = label_maps.labels_of()
    labels[0, 0] = value
    return encoded(Image.fromarray(labels))


def four_bits() -> bytes:
    """A PNG of labels in grey of four bits, which PIL reads, and does not write."""
    width, height = WIDE[1].size

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(
            ">I", zlib.crc32(name + content)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(width // 2) for _ in range(height))
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


WRONG = {
    "another_size": (
        encoded(WIDE[1].resize((95, 64))),
        "has a label map of 95 x 64 pixels, and 96 x 64 itself: correct the map",
    ),
    "no_class": (
        other_label(CLASSES),
        "has the label 24 in its map, which is none of the classes 0 to 23, and ignored_label is "
        "200: set num_classes or ignored_label, or correct the map",
    ),
    "colours": (
        encoded(RED),
        "has a label map of the mode RGB, in colours or of other than 8 bits, where 8-bit grey (L) "
        "or a palette (P) is expected: correct the map",
    ),
    "sixteen_bits": (
        encoded(BLUE),
        "has a label map of the mode I;16, in colours or of other than 8 bits, where 8-bit grey (L)"
        " or a palette (P) is expected: correct the map",
    ),
    "four_bits": (
        four_bits(),
        "has a label map in grey of 4 bits, which readers scale in different ways: save the map in "
        "8 bits",
    ),
    "jpeg": (
        encoded(WIDE[1], "JPEG"),
        "has a label map in JPEG, which changes labels: save the map as PNG from its source",
    ),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Any:
    """Twelve pairs a split; in `broken` an image and a map cannot be decoded."""
    import tensorflow_datasets as tfds

    folder, files = tmp_path_factory.mktemp("tfds"), label_maps.files(12)
    both = {"train": files, "test": files}
    label_maps.build(folder, "whole", both, tfds.features.Image(shape=(None, None, 1)))
    label_maps.build(folder, "three", both, tfds.features.Image())
    broken = [*files]
    broken[3], broken[4] = (b"no image", files[3][1]), (files[4][0], files[4][1][:60])
    label_maps.build(folder, "broken", {"train": broken, "test": broken})
    for name, (label_map, _) in WRONG.items():
        label_maps.build(folder, name, {"train": [(encoded(WIDE[0]), label_map)]})
    prepare_classes(folder, "classes", {"train": 3, "test": 3}, num_classes=CLASSES)
    return folder


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("unreadable", ["error", "skip"])
def test_a_wrong_map_is_always_an_error(data_dir, name, unreadable):
    data = maps_section(data_dir, name, unreadable=unreadable, batch_size=1)
    split = open_split(data, "train")
    for batches in (iter(train_batches(split, data, seed=0)), eval_batches(split, data, 1)):
        with pytest.raises(UserError) as caught:
            next(batches)
        assert str(caught.value) == (
            f"Image 0 (0.png) of the split '{name} train' {WRONG[name][1]} and prepare the dataset "
            "again."
        )


def bad_numbers(split: Any) -> list[int]:
    """Where the pairs that cannot be decoded lie in a split of `broken`, as TFDS shuffled it."""
    names = label_maps.names(split.source)
    return [i for i, name in enumerate(names) if name in ("3.png", "4.png")]


def test_what_cannot_be_decoded_is_named(data_dir):
    data = maps_section(data_dir, "broken")
    message = (
        r"Image \d+ \((3|4).png\) of the split 'broken test' cannot be decoded \((it is in no "
        r"format that PIL knows|its label map: .*)\): mend or remove it"
    )
    with pytest.raises(UserError, match=message):
        next(eval_batches(open_split(data, "test"), data, 12))


def test_what_cannot_be_decoded_may_be_left_out(data_dir, capsys):
    data = maps_section(data_dir, "broken", unreadable="skip")
    split = open_split(data, "test")
    bad = bad_numbers(split)
    batches = list(eval_batches(split, data, 5))
    mask, label = joined(batches, "mask"), joined(batches, "label")
    assert np.flatnonzero(~mask).tolist() == [*bad, 12, 13, 14]
    assert (label[~mask] == -1).all() and not joined(batches, "image")[~mask].any()
    assert (label[mask] >= 0).any(axis=(1, 2)).all()
    assert "2 of the 12 images of the split 'broken test' cannot be" in capsys.readouterr().err
    train = open_split(data, "train")
    trained, bad = take(iter(train_batches(train, data, seed=0)), 3), bad_numbers(train)
    index, label = joined(trained, "index"), joined(trained, "label")
    assert not np.isin(index, bad).any() and set(index) == set(range(12)) - set(bad)
    assert (label >= 0).any(axis=(1, 2)).all()


def test_a_map_of_one_channel_may_not_say_how_many_classes_there_are(data_dir):
    data = maps_section(data_dir, "whole")
    (batch,) = eval_batches(open_split(data, "test"), data, 12)
    assert set(np.unique(batch["label"])) == {-1, *range(CLASSES)} - {7}


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("classes", {}, "classes/1.0.0 has one class for an image, and data.labels is 'map': set "
                        "it to 'class', or prepare label maps with `urnet prepare`."),
        ("three", {}, "three/1.0.0 has label maps of 3 channels, where one of labels is expected: "
                      "prepare them again with `urnet prepare`."),
        ("broken", {"num_classes": 7}, "broken/1.0.0 has 24 classes, not 7: set data.num_classes "
                                       "to 24."),
        ("broken", {"eval_size": ()}, "data.eval_size is (); with data.labels 'map' expected "
                                      "height and width in pixels"),
    ],
)  # fmt: skip
def test_a_dataset_that_does_not_suit_is_one_sentence(data_dir, name, fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        open_split(maps_section(data_dir, name, **fields), "test")


def test_maps_are_not_classes(data_dir):
    data = section(name="whole", dir=str(data_dir), num_classes=CLASSES)
    message = "whole/1.0.0 has label maps, and data.labels is 'class': set it to 'map', and data"
    with pytest.raises(UserError, match=message):
        open_split(data, "test")
    maps = open_split(maps_section(data_dir, "whole"), "train")
    with pytest.raises(UserError, match="data.labels is 'class', but the split was opened with"):
        train_batches(maps, data, seed=0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"augment": "crop"}, "data.augment is 'crop'; with data.labels 'map' expected one of "
                              "none, scale_crop_flip."),
        ({"ignored_label": 23}, "data.ignored_label is 23, which is one of the classes 0 to 23: "
                                "set it to a label that is none, or to -1 if all pixels count."),
        ({"num_classes": 0}, "data.num_classes is 0; expected 1 to 256 classes, which a label "
                             "map of 8 bits can hold."),
        ({"num_classes": 257}, "data.num_classes is 257; expected 1 to 256 classes, which a label "
                               "map of 8 bits can hold."),
        ({"eval_size": (50,)}, "data.eval_size is (50,); with data.labels 'map' expected height "
                               "and width in pixels, as (360, 480), at which whole images are "
                               "evaluated."),
        ({"name": "cifar10", "num_classes": 10}, "data.labels is 'map', and the images of cifar10 "
                               "have one class each: set it to 'class', or data.name to a "
                               "prepared dataset of label maps."),
        ({"labels": "class", "augment": "none"}, "data.ignored_label is 200, which is for label "
                               "maps, and data.labels is 'class': set it to -1, or data.labels to "
                               "'map'."),
        ({"labels": "class"}, "data.augment is 'scale_crop_flip', which is for label maps, and "
                              "data.labels is 'class': set that to 'map', or data.augment to one "
                              "of none, crop, crop_flip, random_resized_crop."),
    ],
)  # fmt: skip
def test_fields_that_do_not_suit_one_another_are_one_sentence(tmp_path, fields, sentence):
    with pytest.raises(UserError) as caught:
        datasets.check(maps_section(tmp_path, **{"name": "cells", **fields}))
    assert str(caught.value) == sentence


@pytest.mark.parametrize("ignored", [-1, IGNORED, 255])
def test_fields_that_suit(tmp_path, ignored):
    datasets.check(maps_section(tmp_path, "cells", ignored_label=ignored, augment="none"))
