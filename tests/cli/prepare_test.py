"""`urnet prepare` as a process: what it prints, and what it says of wrong flags and folders."""

import pathlib
import subprocess
import sys

import pytest

from helpers import label_maps
from helpers.data_batches import joined
from helpers.label_maps import maps_section
from urnet_jax.data.batches import eval_batches
from urnet_jax.data.sources import open_split

PRINTED = """\
tfds/mine/1.0.0 holds 3 train, 2 validation. In a config:

    data.name = 'mine'
    data.dir = 'tfds'
    data.num_classes = 24
    data.labels = 'map'
    data.ignored_label = 200
    data.eval_size = (64, 96)
    data.augment = 'scale_crop_flip'

    data.image_size  # the side of a square that is cropped in training, in pixels
"""
FLAGS = {
    "folder": "mine", "data_dir": "tfds", "name": "mine", "num_classes": "24",
    "ignored_label": "200",
}  # fmt: skip


def run(cwd: pathlib.Path, **fields: str | None) -> subprocess.CompletedProcess[str]:
    given = [f"--{name}={value}" for name, value in (FLAGS | fields).items() if value is not None]
    return subprocess.run(
        [sys.executable, "-m", "urnet_jax", "prepare", *given], cwd=cwd, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    files = label_maps.files(3)
    label_maps.write_folder(tmp_path / "mine", {"train": files, "val": files[:2]})
    return tmp_path


def test_it_prints_what_a_config_needs(folder):
    done = run(folder)
    assert (done.returncode, done.stdout) == (0, PRINTED), done.stderr
    assert "error" not in done.stderr.lower()
    lines = [line.split(" = ") for line in PRINTED.splitlines() if " = " in line]
    named = {line[0].strip().removeprefix("data."): eval(line[1]) for line in lines}
    data = maps_section(folder, **named | {"dir": str(folder / "tfds")})
    batches = list(eval_batches(open_split(data, "test"), data, 2))
    assert joined(batches, "label").shape == (2, 64, 96)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"folder": None}, "--folder is missing; name the folder of images and maps, as "
                           "--folder=CamVid."),
        ({"name": ""}, "--name is missing; name the dataset, as --name=camvid."),
        ({"num_classes": "257"}, "--num_classes is '257'; expected an integer in the range [1, "
                                 "256]."),
        ({"class_names": "sky,,road"}, "--class_names is 'sky,,road'; expected names separated by "
                                       "commas, as sky,road."),
        ({"folder": "none"}, "The folder none is not there; name one that holds images and maps."),
        ({"data_dir": "mine/train/labels/0.png"}, "--data_dir mine/train/labels/0.png cannot be "
                                                  "made a folder"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(folder, fields, sentence):
    done = run(folder, **fields)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {sentence}") and done.stderr.count("\n") == 1


def test_help(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "urnet_jax", "prepare", "--help"], cwd=tmp_path,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and "--ignored_label" in done.stdout
