import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import finetune, trained
from urnet_jax import config as config_lib
from urnet_jax.data.sources import open_split
from urnet_jax.errors import UserError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> pathlib.Path:
    """A folder as CamVid's: two images of a split, each of two rows of three squares."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("one", "two"):
            image, label = (folder / split / kind / f"{name}.jpg" for kind in ("images", "labels"))
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (170, 250, 3), np.uint8)).save(image)
            named = np.full((170, 250), 11, np.uint8)
            named[:80, :80] = 0
            named[80:150, :80] = 3  # 70 of 80 rows
            named[:80, 80:120] = named[:80, 160:200] = 1  # a half
            named[80:160, 80:160] = 8
            Image.fromarray(named).save(label.with_suffix(".png"))
    return folder


def test_squares_are_named_by_what_covers_them(scenes, tmp_path):
    data_dir = finetune.prepare(scenes, tmp_path)
    squares = sorted(path.name for path in (tmp_path / "images/train").glob("*/*"))
    assert squares == sorted(
        f"{name}_{place}.png" for name in ("one", "two") for place in ("0_0", "80_0", "80_80")
    )
    data = config_lib.load("finetune").data
    data.update(name=finetune.DATA, dir=str(data_dir), num_classes=3, augment="none", image_size=80)
    split: Any = open_split(data, "test")
    assert split.class_names == ("car", "road", "sky")
    of_sky = split.images[split.labels == 2]
    with Image.open(tmp_path / "images/test/sky/one_0_0.png") as square:
        assert (of_sky == np.asarray(square)).all(axis=(1, 2, 3)).sum() == 1
    # What is there is not made again, and not taken for something else.
    shutil.rmtree(tmp_path / "images")
    assert finetune.prepare(scenes, tmp_path) == data_dir
    assert not (tmp_path / "images").exists()
    with pytest.raises(UserError, match="squares that were cut otherwise, or of other scenes"):
        finetune.prepare(tmp_path / "nowhere", tmp_path)


def test_both_networks_are_tuned_as_long_from_one_file(tmp_path):
    values = finetune.parse(
        ["finetune.py", f"--scenes={scenes_of(tmp_path)}", "--data_dir=D", "--epochs=3",
         f"--workdir={tmp_path / 'runs'}"]
    )  # fmt: skip
    groups = finetune._groups(values, "P", 0.0)
    assert [name for name, *_ in groups] == ["plain", "resizable"]
    plain, resizable = (settings for _, settings, _ in groups)
    assert (plain["pretrain.epochs"], resizable["joint.epochs"]) == (3.0, 3.0)
    assert plain["init"] == resizable["init"] == "known.safetensors"
    assert plain["init.head"] == resizable["init.head"] == "new"
    assert not plain["model.gated"] and resizable["model.gated"]
    held = tmp_path / "runs" / "plain"
    held.mkdir(parents=True)
    # What the group also says, of the known network, is not a field of this one.
    own = {name: value for name, value in plain.items() if name != "known"}
    trained.results.write_json(held / trained.SETTINGS, own | {"seed": 7})
    with pytest.raises(UserError, match="holds a run with seed 7, and 0 is asked for"):
        finetune._groups(values, "P", 0.0)


def scenes_of(folder: pathlib.Path) -> pathlib.Path:
    for split in ("train", "test"):
        for kind in ("images", "labels"):
            (folder / "scenes" / split / kind).mkdir(parents=True)
    return folder / "scenes"


def test_what_is_missing_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="--scenes is ''; expected a folder with train/images, "):
        finetune.parse(["finetune.py"])
    with pytest.raises(UserError, match="--data_dir is missing; name a prepared TFDS data_dir"):
        finetune.parse(["finetune.py", f"--scenes={scenes_of(tmp_path)}"])
    image, label = (tmp_path / f"scenes/train/{name}" for name in ("images/a.jpg", "labels/a.png"))
    Image.new("RGB", (90, 80)).save(image)
    with pytest.raises(UserError, match=r"a.jpg has no labels; expected .*a.png"):
        finetune.prepare(tmp_path / "scenes", tmp_path)
    Image.new("L", (90, 90)).save(label)
    with pytest.raises(UserError, match=r"a.png has the shape \(90, 90\), and its image another"):
        finetune.prepare(tmp_path / "scenes", tmp_path)
