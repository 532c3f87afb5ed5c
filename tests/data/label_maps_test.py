"""Batches of images with label maps: both are scaled, cropped and mirrored alike."""

import json
import math
import pathlib
import subprocess
import sys
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from helpers import label_maps
from helpers.data_batches import assert_same, joined, take
from helpers.label_maps import CLASSES, IGNORED, MEAN, maps_section
from helpers.own_data import encoded
from urnet_jax.data import augment, splits
from urnet_jax.data.batches import eval_batches, train_batches
from urnet_jax.data.maps import LabelMaps
from urnet_jax.data.sources import open_split

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tfds")
    label_maps.build(folder, "cells", {"train": label_maps.files(20), "test": label_maps.files(10)})
    return folder


def assert_colours_tell_labels(image: np.ndarray, label: np.ndarray) -> float:
    """Checks pixels that are far from the borders of labels; the share of those."""
    far = np.ones(label.shape, bool)
    for axis in (0, 1):
        for step in range(-4, 5):
            far &= np.roll(label, step, axis) == label
    far[:4], far[-4:], far[:, :4], far[:, -4:] = False, False, False, False
    known = far & (label >= 0)
    told = label_maps.colours_of(np.maximum(label, 0))
    np.testing.assert_array_equal(image[known], told[known])
    unknown = image[far & (label < 0)]
    ignored = label_maps.colours_of(np.array([IGNORED]))[0]
    assert ((unknown == MEAN).all(-1) | (unknown == ignored).all(-1)).all()
    return float(known.mean())


def scaled_labels(labels: Image.Image, width: int, height: int) -> np.ndarray:
    """The whole map, scaled: of each pixel the label at its centre."""
    rows, columns = (
        [math.floor(Fraction(2 * i + 1, 2 * new) * old) for i in range(new)]
        for old, new in ((labels.height, height), (labels.width, width))
    )
    nearest = np.asarray(labels)[rows][:, columns]
    return np.where(nearest == IGNORED, -1, nearest.astype(np.int32))


def test_a_split_with_label_maps_stays_on_its_disk(data_dir):
    split = open_split(maps_section(data_dir, "cells"), "train")
    assert (split.num_examples, split.num_classes) == (20, CLASSES)
    assert split.images is None and split.labels is None
    assert (split.image_shape, split.label_shape) == ((50, 60, 3), (50, 60))
    assert split.maps == LabelMaps((50, 60), CLASSES, IGNORED)


def test_the_whole_image_fits_at_the_top_left_as_pil_scales_it():
    for wide, (width, height) in ((True, (60, 40)), (False, (33, 50))):
        image, labels = label_maps.pair(wide)
        seen, label = LabelMaps((50, 60), CLASSES, IGNORED).decode_eval(
            encoded(image), encoded(labels)
        )
        assert (seen.shape, seen.dtype) == ((50, 60, 3), np.uint8)
        assert (label.shape, label.dtype) == ((50, 60), np.int32)
        scaled = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(seen[:height, :width], scaled)
        np.testing.assert_array_equal(label[:height, :width], scaled_labels(labels, width, height))
        for missing in (np.s_[height:], np.s_[:, width:]):
            assert (seen[missing] == MEAN).all() and (label[missing] == -1).all()


def test_of_an_image_as_large_as_eval_size_nothing_changes():
    image, labels = label_maps.pair()
    seen, label = LabelMaps((64, 96), CLASSES, IGNORED).decode_eval(encoded(image), encoded(labels))
    np.testing.assert_array_equal(seen, np.asarray(image))
    np.testing.assert_array_equal(label[label >= 0], np.asarray(labels)[label >= 0])
    assert (np.asarray(labels)[label < 0] == IGNORED).all()


def test_what_is_missing_has_the_mean_that_normalisation_takes_out():
    pixels = np.array(MEAN, np.uint8).reshape(1, 1, 1, 3)
    normal = augment.normalize(pixels, *augment.normalization("cells"))
    assert np.abs(np.asarray(normal)).max() < 0.01


def test_evaluation_sees_each_pair_once(data_dir):
    data = maps_section(data_dir, "cells")
    split = open_split(data, "test")
    batches = list(eval_batches(split, data, 4))
    assert [b["image"].shape for b in batches] == [(4, 50, 60, 3)] * 3
    assert [(b["label"].shape, b["label"].dtype) for b in batches] == [((4, 50, 60), np.int32)] * 3
    mask, label = joined(batches, "mask"), joined(batches, "label")
    np.testing.assert_array_equal(joined(batches, "index"), [*range(10), -1, -1])
    np.testing.assert_array_equal(mask, [True] * 10 + [False] * 2)
    assert (label[10:] == -1).all() and not joined(batches, "image")[10:].any()
    for image, labels in zip(joined(batches, "image")[mask], label[mask], strict=True):
        assert_colours_tell_labels(image, labels)
    for i, name in enumerate(label_maps.names(split.source)):
        upright = int(name.removesuffix(".png")) % 2 == 1
        assert (label[i][45:] >= 0).any() == upright


def test_without_augmentation_training_sees_what_evaluation_does(data_dir):
    data = maps_section(data_dir, "cells", augment="none")
    split = open_split(data, "train")
    batch = next(iter(train_batches(split, data, seed=0)))
    whole = list(eval_batches(split, data, 20))
    for key in ("image", "label"):
        np.testing.assert_array_equal(batch[key], joined(whole, key)[batch["index"]])


def test_in_training_image_and_map_are_scaled_cropped_and_mirrored_alike(data_dir):
    data = maps_section(data_dir, "cells", batch_size=20)
    batches = take(iter(train_batches(open_split(data, "train"), data, seed=0)), 4)
    image, label = joined(batches, "image"), joined(batches, "label")
    assert (image.shape, image.dtype) == ((80, 48, 48, 3), np.uint8)
    assert (label.shape, label.dtype) == ((80, 48, 48), np.int32)
    shares = [assert_colours_tell_labels(*both) for both in zip(image, label, strict=True)]
    assert np.mean(shares) > 0.05
    np.testing.assert_array_equal(np.bincount(joined(batches, "index")), [4] * 20)
    assert len({labels.tobytes() for labels in label}) > 70  # Two small ones may be the same.


def test_a_window_is_what_is_drawn_of_the_whole_scaled_image():
    maps, size = LabelMaps((50, 60), CLASSES, IGNORED), 48
    image, labels = label_maps.pair()
    factors, mirrored, empty = [], 0, 0
    for index in range(200):
        drawn = size, 3, 1, index
        window = maps.draw(labels, *drawn)
        factors.append(window.width / 60)
        mirrored += window.mirrored
        seen, label = maps.decode_train(encoded(image), encoded(labels), *drawn)
        right = min(window.left + size, window.width)
        bottom = min(window.top + size, window.height)
        box = np.s_[window.top : bottom, window.left : right]
        shape = window.width, window.height
        scaled = np.asarray(image.resize(shape, Image.Resampling.BILINEAR))[box]
        if window.mirrored:
            seen, label = seen[:, ::-1], label[:, ::-1]
        height, width = scaled.shape[:2]
        assert np.abs(seen[:height, :width].astype(int) - scaled).max() <= 1
        expected = scaled_labels(labels, *shape)
        np.testing.assert_array_equal(label[:height, :width], expected[box])
        for missing in (np.s_[height:], np.s_[:, width:]):
            assert (seen[missing] == MEAN).all() and (label[missing] == -1).all()
        empty += height < size
    assert 0.49 < min(factors) < 0.53 and 1.95 < max(factors) < 2.01
    assert 1.15 < np.mean(factors) < 1.35
    assert 70 < mirrored < 130 and 20 < empty < 180


def test_a_large_jpeg_is_scaled_as_pil_does_though_less_of_it_is_decoded():
    maps = LabelMaps((50, 60), CLASSES, IGNORED)
    image, labels = (
        each.resize((960, 640), Image.Resampling.NEAREST) for each in label_maps.pair()
    )
    file = encoded(image, "JPEG", quality=95, subsampling=0)
    for index in range(20):
        window = maps.draw(labels, 120, 0, 0, index)
        seen, _ = maps.decode_train(file, encoded(labels), 120, 0, 0, index)
        scaled = np.asarray(image.resize((window.width, window.height), Image.Resampling.BILINEAR))
        if window.mirrored:
            seen = seen[:, ::-1]
        both = seen[: window.height, : window.width].astype(int), scaled[:120, :120]
        assert np.abs(both[0] - both[1]).mean() < 2


def test_batches_do_not_depend_on_threads_processes_or_restarts(data_dir):
    data = maps_section(data_dir, "cells")
    split = open_split(data, "train")
    batches = iter(train_batches(split, data, seed=1))
    first = take(batches, 3)
    state = json.loads(json.dumps(batches.get_state()))
    second = take(batches, 3)
    resumed = iter(train_batches(split, maps_section(data_dir, "cells", threads=1), seed=1))
    resumed.set_state(state)
    assert_same(take(resumed, 3), second)
    half = train_batches(split, data, seed=1, process_index=1, process_count=2)
    expected = [{key: value[4:] for key, value in batch.items()} for batch in first]
    assert_same(take(iter(half), 3), expected)
    other = next(iter(train_batches(split, data, seed=2)))
    assert (other["label"] != first[0]["label"]).any()


def test_the_device_leaves_what_was_augmented_in_decoding_alone():
    images = jnp.arange(2 * 4 * 4 * 3, dtype=jnp.uint8).reshape(2, 4, 4, 3)
    numbers = jnp.arange(2)
    same = augment.augment_images(
        images, numbers, numbers, seed=0, mode="scale_crop_flip", padding=1
    )
    np.testing.assert_array_equal(same, images)


def test_examples_are_taken_out_of_a_split_and_found_again(data_dir):
    data = maps_section(data_dir, "cells")
    split = open_split(data, "test")
    (batch,) = eval_batches(split, data, 10)
    chosen = np.array([7, 2, 9])
    images, labels = splits.examples(split, chosen)
    np.testing.assert_array_equal(images, batch["image"][chosen])
    np.testing.assert_array_equal(labels, batch["label"][chosen])
    part: Any = splits.take(split, chosen)
    assert part.images is None and part.num_examples == 3  # Whole images stay on their disk.
    assert part.label_shape == (50, 60) and part.numbers.tolist() == [7, 2, 9]
    assert splits.places(part, np.array([9, 7])).tolist() == [2, 0]
    (again,) = eval_batches(part, data, 3)
    np.testing.assert_array_equal(again["label"], labels)
    less = splits.take(part, np.array([2, 0]))
    assert less.numbers is not None and less.numbers.tolist() == [9, 7]
    np.testing.assert_array_equal(splits.examples(less, np.array([1]))[1], labels[:1])
    trained = next(iter(train_batches(part, data, seed=0)))
    assert set(trained["index"].tolist()) == {7, 2, 9}


def test_of_a_palette_the_index_is_the_label():
    image, labels = label_maps.pair()
    palette = labels.convert("P")
    palette.putdata(labels.tobytes())
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    maps = LabelMaps((50, 60), CLASSES, IGNORED)
    grey, coloured = (maps.decode_eval(encoded(image), encoded(p))[1] for p in (labels, palette))
    np.testing.assert_array_equal(grey, coloured)


SCRIPT = """
import sys
import numpy as np
from helpers.label_maps import maps_section
from urnet_jax.data.batches import train_batches
from urnet_jax.data.sources import open_split

if __name__ == "__main__":
    data = maps_section(sys.argv[1], "cells", workers=2)
    batches = iter(train_batches(open_split(data, "train"), data, seed=1))
    loaded = [next(batches) for _ in range(3)]
    batches.close()
    np.savez(sys.argv[2], **{f"{k}{i}": v for i, b in enumerate(loaded) for k, v in b.items()})
"""


@pytest.mark.slow
def test_workers_see_the_same(data_dir, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    subprocess.run(
        [sys.executable, tmp_path / "script.py", data_dir, tmp_path / "loaded.npz"],
        check=True, timeout=120,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    data = maps_section(data_dir, "cells")
    expected = take(iter(train_batches(open_split(data, "train"), data, seed=1)), 3)
    with np.load(tmp_path / "loaded.npz") as loaded:
        got = [{key: loaded[f"{key}{i}"] for key in expected[0]} for i in range(3)]
    assert_same(got, expected)
