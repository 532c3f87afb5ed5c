"""A network as a folder of files: what goes in comes out, and what is damaged is refused."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from etils import epath

from helpers.pretrained_networks import assert_identical
from urnet_jax import config as config_lib
from urnet_jax.errors import UserError
from urnet_jax.runs import bundle, calibration, export, kept, profile
from urnet_jax.runs.calibration import Calibration
from urnet_jax.runs.load import load_network
from urnet_jax.runs.profile import Profile

CALIBRATION = Calibration((0.2, 1.0), (-0.5, 0.0), (0.3, 1.0), (0.2, 1.0), (0.21, 1.0), 9, 9)
PROFILE = Profile(
    (0.2, 1.0), (50.0, 90.0), (0.2, 1.0), 9, (1, 8), ((0.001, 0.002), (0.003, 0.008)),
    {"device": "1 x tpu"},
)  # fmt: skip


@pytest.fixture
def folder(workdir, tmp_path) -> pathlib.Path:
    """The bundle of a calibrated and measured run."""
    step = load_network(workdir).meta.step
    calibration.write(workdir, step, CALIBRATION)
    profile.write(workdir, step, PROFILE)
    export.export_bundle(workdir, tmp_path / "bundle", "newest")
    return tmp_path / "bundle"


def test_a_bundle_is_the_network_of_the_run(workdir, folder):
    names = {"config.json", "model.safetensors", "README.md", "calibration.json", "profile.json"}
    assert {path.name for path in folder.iterdir()} == names
    found, (meta, *variables) = bundle.read(folder), load_network(workdir)
    assert_identical((found.params, found.batch_stats), tuple(variables))
    assert found.calibration == CALIBRATION and found.profile == PROFILE
    differing = {
        name for name, value in config_lib.flatten(meta.config).items()
        if config_lib.flatten(found.meta.config)[name] != value
    }  # fmt: skip
    assert differing <= set(bundle.PLACES)
    same = dataclasses.replace(found.meta, config=meta.config)
    assert same == meta


def test_where_data_lay_is_not_told(workdir, folder, tmp_path):
    meta, params, stats = load_network(workdir)
    meta.config.data.dir = "/home/somebody/data"
    bundle.write(bundle.Bundle(meta, params, stats), tmp_path / "other", "card")
    assert "somebody" not in (tmp_path / "other/config.json").read_text()
    assert meta.config.data.dir == "/home/somebody/data"


def test_again_it_replaces_the_older_one(workdir, folder, tmp_path):
    plain = bundle.Bundle(*load_network(workdir))
    bundle.write(plain, folder, "card")
    found = bundle.read(folder)
    assert (found.calibration, found.profile) == (None, None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other files: name an empty folder"):
        bundle.write(plain, tmp_path / "mine", "card")


def test_the_card_says_how_it_is_used_and_what_it_reached(workdir, folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: urnet_jax\npipeline_tag: image-classification\n")
    assert "ResNet-8" in card and "predictor(images, scale=0.5)" in card and "[n, 8, 8, 1]" in card
    rows = [
        {"scale": 0.2, "flops_share": 0.21, "top1_percent": 61.25, "examples": 360},
        {"scale": 1.0, "flops_share": 1.0, "top1_percent": 93.5, "examples": 360},
    ]
    of_run: dict[str, Any] = {"dataset": "digits", "split": "test", "rows": rows}
    said = export.card(bundle.read(folder), of_run)
    assert "360 images of digits test" in said and "| 0.2 | 21.0 | 61.25 |" in said


def test_what_is_no_whole_bundle_is_one_sentence(folder, tmp_path):
    def refused(sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            bundle.read(folder)

    config = folder / "config.json"
    whole = config.read_text()
    held = json.loads(whole)
    for text in ("", "{}", "[]", json.dumps(held | {"meta": {}})):
        config.write_text(text)
        refused("config.json is not that of a bundle")
    config.write_text(json.dumps(held | {"format": 2}))
    refused("is a bundle of format 2, and this version of urnet_jax reads those up to 1")
    config.write_text(whole)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(bytes(content))
    refused("is not the file that config.json tells of")
    content[-5] ^= 1
    weights.write_bytes(bytes(content))
    kept = (folder / "profile.json").read_text()
    (folder / "profile.json").write_text("{}")
    refused("profile.json is not the file that config.json tells of")
    (folder / "profile.json").unlink()
    refused("profile.json is not the file that config.json tells of")
    (folder / "profile.json").write_text(kept)
    bundle.read(folder)


def test_what_is_no_profile_is_one_sentence(tmp_path):
    path = epath.Path(tmp_path / "profile.json")
    whole = json.loads(kept.to_text(PROFILE))
    nan = float("nan")
    for wrong in (
        {"scales": [0.2]}, {"top1_percent": [50, nan]}, {"seconds": [[1, 2]]}, {"about": [1]},
        {"batch_sizes": [8, 1]}, {"seconds": [[0.001, 0.002], [0.003, -1]]}, {"other": 1},
    ):  # fmt: skip
        path.write_text(json.dumps(whole | wrong))
        with pytest.raises(UserError, match="is not a profile: remove it"):
            profile.from_file(path)


def test_another_librarys_model_is_left_alone(workdir, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"theirs")
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds other files"):
        bundle.write(bundle.Bundle(*load_network(workdir)), other, "card")
    assert (other / "model.safetensors").read_bytes() == b"theirs"
    # And beside a run's checkpoints it does not hide those.
    (workdir / "model.safetensors").write_bytes(b"theirs")
    assert not bundle.is_bundle(workdir)


def test_a_profile_is_read_between_what_was_measured():
    np.testing.assert_allclose(PROFILE.seconds_at(0.2, 1), 0.001)
    np.testing.assert_allclose(PROFILE.seconds_at([0.2, 0.6, 1.0], 8), [0.002, 0.005, 0.008])
    np.testing.assert_allclose(PROFILE.seconds_at(1.0, 16), 0.016)
    np.testing.assert_allclose(PROFILE.seconds_at(0.2, 4), 0.001 + 0.003 / 7)


def test_a_profile_goes_with_a_new_calibration(workdir):
    step = load_network(workdir).meta.step
    profile.write(workdir, step, PROFILE)
    assert profile.read(workdir, step) == PROFILE
    profile.remove(workdir, step)
    assert profile.read(workdir, step) is None
    load_network(workdir)  # The checkpoint is still whole.


NO_ORBAX = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("orbax", "tensorflow_datasets", "grain", "matplotlib", "pandas"):
            raise ImportError(name)

sys.meta_path.insert(0, Without())
import numpy as np
import urnet_jax

predictor = urnet_jax.load(sys.argv[1], batch_sizes=(4,))
print(predictor(np.zeros((3, 8, 8, 1), np.uint8), scale=0.5).probabilities.shape)
"""


def test_it_is_read_without_orbax(folder):
    done = subprocess.run(
        [sys.executable, "-c", NO_ORBAX, str(folder)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "(3, 10)\n"), done.stderr
