"""Datasets of label maps from folders, as `urnet prepare` makes them."""

import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import label_maps
from helpers.data_batches import joined, take
from helpers.label_maps import CLASSES, IGNORED, maps_section, write_folder
from helpers.own_data import encoded
from urnet_jax.data import pairs
from urnet_jax.data.batches import eval_batches, train_batches
from urnet_jax.data.prepare import prepare
from urnet_jax.data.sources import open_split
from urnet_jax.errors import UserError

CAMVID = pathlib.Path(__file__).parents[3] / "shared" / "data" / "camvid"
KNOWN: Any = {"num_classes": CLASSES, "ignored_label": IGNORED}


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    files = label_maps.files(4)
    return write_folder(tmp_path / "mine", {"train": files, "val": files[:3], "test": files[:1]})


def test_a_folder_becomes_a_dataset(folder, tmp_path):
    (folder / "train" / "images" / "notes.txt").touch()
    made = prepare(folder, tmp_path / "tfds", "mine", **KNOWN)
    assert made.folder == tmp_path / "tfds" / "mine" / "1.0.0" and made.folder.is_dir()
    assert made.examples == {"train": 4, "validation": 3, "test": 1}
    assert made.fields == {
        "name": "mine", "dir": str(tmp_path / "tfds"), "num_classes": 24, "labels": "map",
        "ignored_label": 200, "eval_size": (64, 96), "augment": "scale_crop_flip",
    }  # fmt: skip
    data = maps_section(tmp_path, **made.fields)
    train, test = (open_split(data, name) for name in ("train", "test"))
    assert (train.num_examples, test.num_examples, train.class_names) == (4, 1, ())
    assert sorted(label_maps.names(train.source)) == [f"{i}.png" for i in range(4)]
    (batch,) = eval_batches(test, data, 1)
    image, labels = label_maps.pair()
    np.testing.assert_array_equal(batch["image"][0], np.asarray(image))
    labels = np.asarray(labels).astype(np.int32)
    np.testing.assert_array_equal(batch["label"][0], np.where(labels == IGNORED, -1, labels))


def test_without_a_split_test_validation_is_tested_on(folder, tmp_path):
    shutil.rmtree(folder / "test")
    (folder / "val").rename(folder / "validation")
    names = [f"class {i}" for i in range(CLASSES)]
    made = prepare(folder, tmp_path / "tfds", "mine", class_names=names, ignored_label=IGNORED)
    assert made.examples == {"train": 4, "validation": 3}
    split = open_split(maps_section(tmp_path, **made.fields), "test")
    assert (split.num_examples, split.class_names) == (3, tuple(names))


def cityscapes(root: pathlib.Path, kind: str, labels: np.ndarray) -> pathlib.Path:
    """Two images of two cities to train on and one to test on, all with these labels."""
    image = encoded(Image.fromarray(label_maps.colours_of(labels)))
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "lindau")):
        for wing, end, file in (
            ("leftImg8bit", "leftImg8bit", image),
            ("gtFine", f"gtFine_{kind}", encoded(Image.fromarray(labels))),
            ("gtFine", "gtFine_color", image),
        ):
            path = root / wing / split / city / f"{city}_000000_000019_{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file)
    return root


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_is_known(tmp_path, kind):
    ids = np.arange(34, dtype=np.uint8) if kind == "labelIds" else np.array([*range(19), 255])
    labels = np.repeat(ids[None].astype(np.uint8), 8, axis=0)
    root = cityscapes(tmp_path / "cityscapes", kind, labels)
    made = prepare(root, tmp_path / "tfds", "city", num_classes=19, ignored_label=255)
    assert made.examples == {"train": 2, "validation": 1}
    data = maps_section(tmp_path, **made.fields)
    split = open_split(data, "test")
    assert split.class_names[:2] == ("road", "sidewalk") and len(split.class_names) == 19
    (batch,) = eval_batches(split, data, 1)
    if kind == "labelIds":
        # Of Cityscapes' own list; the others are left out of training and of evaluation.
        classes = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
        expected = [classes.index(i) if i in classes else -1 for i in range(34)]
    else:
        expected = [*range(19), -1]
    assert (batch["label"][0] == expected).all()
    with pytest.raises(UserError, match="Cityscapes has 19 classes and the ignored label 255: lea"):
        prepare(root, tmp_path / "tfds", "city2", num_classes=11)


def test_train_ids_are_taken_where_there_are_both(tmp_path):
    root = cityscapes(tmp_path, "labelIds", np.full((8, 8), 7, np.uint8))
    cityscapes(tmp_path, "labelTrainIds", np.full((8, 8), 3, np.uint8))
    found = pairs.find(root)
    assert not any(pair.label_ids for split in found.splits.values() for pair in split)
    assert [p.name for p in found.splits["train"]][0] == (
        "aachen/aachen_000000_000019_leftImg8bit.png"
    )


def remove(*parts: str):
    def change(folder: pathlib.Path) -> None:
        path = folder.joinpath(*parts)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def replace(name: str, split: str, file: bytes):
    return lambda folder: (folder / split / name / "0.png").write_bytes(file)


def both_validations(folder: pathlib.Path) -> None:
    shutil.copytree(folder / "val", folder / "validation")


def twice(folder: pathlib.Path) -> None:
    shutil.copy(folder / "val" / "images" / "0.png", folder / "val" / "images" / "0.jpg")


def no_tests(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / "val")
    shutil.rmtree(folder / "test")


def empty(folder: pathlib.Path) -> None:
    for path in (folder / "val" / "images").iterdir():
        path.unlink()


def without_labels(folder: pathlib.Path) -> None:
    for path in (folder / "val" / "labels").iterdir():
        path.write_bytes(encoded(label_maps.pair()[1].point(lambda _: IGNORED)))
        path.parent.parent.joinpath("images", path.name).write_bytes(label_maps.files(1)[0][0])


NO_CLASS = encoded(Image.new("L", (96, 64), 30))
WRONG = {
    "no folder": (remove(), "The folder {0} is not there; name one"),
    "no train": (remove("train"), "{0} has no images to train on; expected some in {0}/train."),
    "nothing to test on": (no_tests, "{0} has no images to test on; expected some in {0}/val or"),
    "no layout": (lambda f: [shutil.rmtree(p) for p in f.iterdir()], "{0} is in no layout that is"),
    "no map": (
        remove("val", "labels", "2.png"),
        "{0}/val/images/2.png has no label map in {0}/val/labels; add it, or remove the image.",
    ),
    "no image": (
        remove("val", "images", "2.png"),
        "{0}/val/labels/2.png has no JPEG or PNG image of its name; add it, or ",
    ),
    "no images": (empty, "{0}/val/images holds no JPEG or PNG files; put some there or remove"),
    "two of one name": (twice, "{0}/val/images/0.jpg and {0}/val/images/0.png have one name"),
    "two validations": (both_validations, "{0} has both val and validation, which are one split"),
    "another size": (
        replace("labels", "test", encoded(Image.new("L", (96, 63)))),
        "{0}/test/images/0.png has a label map of 96 x 63 pixels, and 96 x 64 itself: correct the "
        "map {0}/test/labels/0.png.",
    ),
    "no class": (
        replace("labels", "test", NO_CLASS),
        "{0}/test/images/0.png has the label 30 in its map, which is none of the classes 0 to 23, "
        "and ignored_label is 200: set num_classes or ignored_label, or correct the map {0}/test",
    ),
    "no labels": (
        without_labels,
        "No pixel of the split 'validation' has a class in its label map, the first of them",
    ),
    "no folder of maps": (
        remove("val", "labels"),
        "The folder {0}/val/labels is not there; add it.",
    ),
    "half an image": (
        replace("images", "test", label_maps.files(1)[0][0][:-40]),
        "{0}/test/images/0.png cannot be decoded (image file is truncated): mend or remove it.",
    ),
    "no image file": (
        replace("images", "test", b"no image"),
        "{0}/test/images/0.png cannot be decoded (it is in no format that PIL knows): mend or",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_folder_is_one_sentence_before_anything_is_written(case, folder, tmp_path):
    change, sentence = WRONG[case]
    change(folder)
    with pytest.raises(UserError) as caught:
        prepare(folder, tmp_path / "tfds", "mine", **KNOWN)
    assert str(caught.value).startswith(sentence.format(folder))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert not (tmp_path / "tfds").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("my-maps", KNOWN, "--name is 'my-maps'; expected small letters, digits and underscores"),
        ("cifar10", KNOWN, "--name is 'cifar10', which is a known dataset; choose another."),
        ("mine", {}, "--num_classes is missing; say how many classes the maps have, as 11."),
        ("mine", {"num_classes": 3, "class_names": ("a", "b")}, "--num_classes is 3, and --class_"),
        ("mine", {"class_names": ("a", "a")}, "--class_names has one name twice"),
        ("mine", {"num_classes": 24, "ignored_label": 3}, "--ignored_label is 3, which is one of"),
    ],
)
def test_wrong_arguments_are_one_sentence(folder, tmp_path, name, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        prepare(folder, tmp_path / "tfds", name, **arguments)


def test_it_says_which_label_was_ignored_when_it_was_prepared(folder, tmp_path):
    made = prepare(folder, tmp_path / "tfds", "mine", **KNOWN)
    data = maps_section(tmp_path, **made.fields)
    data.ignored_label = 255
    with pytest.raises(UserError) as caught:
        open_split(data, "train")
    assert str(caught.value) == (
        f"{made.folder} was prepared for the ignored label 200, and data.ignored_label is 255: set "
        "it to 200, or prepare the dataset again."
    )


def test_what_is_prepared_is_not_prepared_again(folder, tmp_path):
    prepare(folder, tmp_path / "tfds", "mine", **KNOWN)
    with pytest.raises(UserError, match="tfds/mine is prepared already; delete it to"):
        prepare(folder, tmp_path / "tfds", "mine", **KNOWN)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no CamVid in ../shared/data/camvid")
def test_camvid(tmp_path):
    made = prepare(CAMVID, tmp_path, "camvid", num_classes=11, ignored_label=11)
    assert made.examples == {"train": 367, "validation": 101, "test": 233}
    assert made.fields["eval_size"] == (360, 480)
    data = maps_section(tmp_path, **made.fields, image_size=128, batch_size=32)
    batches = take(iter(train_batches(open_split(data, "train"), data, seed=0)), 3)
    assert joined(batches, "image").shape == (96, 128, 128, 3)
    assert set(np.unique(joined(batches, "label"))) == set(range(-1, 11))
    split = open_split(data, "test")
    label = joined(list(eval_batches(split, data, 50)), "label")
    assert label.shape == (250, 360, 480) and (label[233:] == -1).all()
    places = np.array([0, 100, 232])
    names = np.array(label_maps.names(split.source))
    for labels, name in zip(label[places], names[places], strict=True):
        with Image.open((CAMVID / "test" / "labels" / name).with_suffix(".png")) as stored:
            expected = np.asarray(stored).astype(np.int32)
        np.testing.assert_array_equal(labels, np.where(expected == 11, -1, expected))
