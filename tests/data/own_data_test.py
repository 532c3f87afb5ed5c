"""Batches of data of one's own, prepared as docs/own_data.md says."""

import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import urnet_jax
from helpers.data_batches import joined, section, take
from urnet_jax.data.batches import eval_batches, train_batches
from urnet_jax.data.sources import open_split
from urnet_jax.errors import UserError
from urnet_jax.runs import export
from urnet_jax.serve.web.page import page
from urnet_jax.train import loop

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Any:
    """The section `data` of what the script in docs/own_data.md makes of a folder of digits."""
    folder = tmp_path_factory.mktemp("own")
    bunch: Any = load_digits()
    for i in range(60):
        split = "train" if i < 40 else "test"
        path = folder / "images" / split / f"digit {bunch.target[i]}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(bunch.images[i].astype(np.uint8)).save(path)
    (folder / "images" / "train" / "digit 0" / "notes.txt").touch()
    document = (ROOT / "docs" / "own_data.md").read_text()
    (script,) = re.findall("```python\n(.*?)```", document, re.DOTALL)
    (folder / "prepare.py").write_text(script)
    command = [sys.executable, "prepare.py", "images", "tfds", "mydigits"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "mydigits has 10 classes.", done.stderr
    wrong = subprocess.run(
        [*command[:2], "none", *command[3:]], cwd=folder, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert wrong.returncode == 1 and wrong.stderr.splitlines() == [
        "python prepare.py IMAGES DATA_DIR NAME: makes a TFDS dataset of IMAGES/SPLIT/CLASS/FILE.",
        "IMAGES has to hold a folder train.",
    ]
    return section(name="mydigits", num_classes=10, dir=str(folder / "tfds"), batch_size=30)


def test_own_data_is_trained_and_evaluated_on(own):
    bunch: Any = load_digits()
    digit = {image.astype(np.uint8).tobytes(): k for k, image in enumerate(bunch.images)}
    train, test = (open_split(own, split) for split in ("train", "test"))
    assert (train.num_examples, test.num_examples, train.num_classes) == (40, 20, 10)
    batches = take(iter(train_batches(train, own, seed=0)), 4)
    found = [digit[image[..., 0].tobytes()] for image in joined(batches, "image")]
    assert sorted(found) == sorted([*range(40)] * 3)
    assert joined(batches, "label").tolist() == bunch.target[found].tolist()
    (batch,) = eval_batches(test, own, 20)
    found = [digit[image[..., 0].tobytes()] for image in batch["image"]]
    assert sorted(found) == list(range(40, 60))
    assert batch["label"].tolist() == bunch.target[found].tolist()


def test_the_names_of_its_classes_go_with_the_network(own, tiny, tmp_path):
    fields = {"data.name": own.name, "data.num_classes": 10, "data.dir": own.dir,
              "data.batch_size": 30, "data.augment": "none", "pretrain.epochs": 0.0,
              "gates.epochs": 0.0, "joint.epochs": 1.0}  # fmt: skip
    loop.train_and_evaluate(tiny(fields), tmp_path / "run")
    export.export_bundle(tmp_path / "run", tmp_path / "bundle", "newest")
    for path in (tmp_path / "run", tmp_path / "bundle"):
        predictor = urnet_jax.load(path)
        assert predictor.class_names == tuple(f"digit {k}" for k in range(10))
        assert '"digit 7"' in page(predictor, "mine").decode()


def test_own_data_is_cropped_at_random_as_it_streams(own):
    whole: Any = open_split(own, "train")
    data = own.copy_and_resolve_references()
    data.update(augment="random_resized_crop", image_size=7)
    split = open_split(data, "train")
    batches = take(iter(train_batches(split, data, seed=0)), 4)
    index, image = joined(batches, "index"), joined(batches, "image")
    assert image.shape == (120, 7, 7, 3)
    np.testing.assert_array_equal(np.bincount(index), [3] * 40)
    np.testing.assert_array_equal(joined(batches, "label"), whole.labels[index])
    first, second = (image[np.argsort(index, kind="stable")][k::3] for k in (0, 1))
    assert (first != second).any(axis=(1, 2, 3)).all()
    # The shorter side of 8 becomes 7 * 256 / 224 = 8, of whose centre 7 pixels are cropped.
    (batch,) = eval_batches(split, data, 40)
    np.testing.assert_array_equal(batch["image"], whole.images[:, :7, :7])
    with pytest.raises(UserError, match="opened with another, its images resized: open it again"):
        train_batches(whole, data, seed=0)
