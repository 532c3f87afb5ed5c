"""A run's network without its optimiser: what is read, and onto which device."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import pytest

from helpers.pretrained_networks import assert_identical, variables
from urnet_jax.config import architecture
from urnet_jax.errors import UserError
from urnet_jax.runs.checkpoint import Checkpointer
from urnet_jax.runs.load import load_network
from urnet_jax.runs.meta import Meta
from urnet_jax.train import state
from urnet_jax.train.state import Averaged

ROOT = pathlib.Path(__file__).resolve().parents[2]


def save(workdir: pathlib.Path, config: Any, **parts: Any) -> None:
    """A checkpoint of the phase joint that holds no more than `parts`."""
    with contextlib.closing(Checkpointer(workdir, keep=1)) as checkpointer:
        checkpointer.save(parts, Meta(1, "joint", 1, 11, 2.5, config))


def test_what_is_restored_is_what_is_loaded(finished):
    meta, params, batch_stats = load_network(finished)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = state.abstract_state(meta.config, meta.phase, meta.steps_per_epoch, here)
    with contextlib.closing(Checkpointer(finished)) as checkpointer:
        restored = checkpointer.restore_state(meta.step, abstract)
    assert (int(restored.step), int(restored.phase_step)) == (29, 11)
    assert_identical((params, batch_stats), (restored.params, restored.batch_stats))


def test_neither_the_optimiser_nor_what_is_averaged_is_read(tiny, tmp_path):
    config = tiny()
    (params, batch_stats), averages = (variables(architecture(config), k) for k in range(2))
    save(tmp_path / "plain", config, params=params, batch_stats=batch_stats)
    assert_identical(load_network(tmp_path / "plain")[1:], (params, batch_stats))
    config = tiny({"joint.ema_decay": 0.9})
    held = Averaged(*averages)
    save(tmp_path / "averaged", config, ema_params=held, params=params, batch_stats=batch_stats)
    assert_identical(load_network(tmp_path / "averaged")[1:], averages)


def test_a_checkpoint_that_lacks_a_part_of_the_network_is_refused(tiny, tmp_path):
    config = tiny()
    params, batch_stats = variables(architecture(config))
    lacking = {name: tree for name, tree in params.items() if name != "fc"}
    save(tmp_path, config, params=lacking, batch_stats=batch_stats)
    folder = tmp_path / "checkpoints" / "1"
    sentence = f"The checkpoint {folder} cannot be read (it holds no params.fc.bias);"
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_network(tmp_path)


def test_a_checkpoint_opens_on_another_device(workdir, newest):
    (newest / "checksums.json").unlink()
    record = newest / "state" / "_sharding"  # where Orbax notes the devices of every array
    here, elsewhere = r"{\"id\": 0}", r"{\"id\": 2048}"
    assert here in record.read_text()
    record.write_text(record.read_text().replace(here, elsewhere))
    assert load_network(workdir).meta.step == 29


FOUR = """
import contextlib, sys
import jax
from helpers.pretrained_networks import variables
from urnet_jax import config as config_lib
from urnet_jax.runs.checkpoint import Checkpointer
from urnet_jax.runs.meta import Meta
from urnet_jax.xla import sharding

assert len(jax.devices()) == 4
config = config_lib.load("digits")
trees = variables(config_lib.architecture(config))
params, batch_stats = sharding.replicate(trees, sharding.make_mesh())
with contextlib.closing(Checkpointer("run", keep=1)) as checkpointer:
    state = {"params": params, "batch_stats": batch_stats}
    checkpointer.save(state, Meta(1, "joint", 1, 11, 2.5, config))
"""


def test_what_four_devices_wrote_opens_on_one(tmp_path):
    environment = {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", FOUR], cwd=tmp_path, env=os.environ | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    meta, *found = load_network(tmp_path / "run")
    assert_identical(tuple(found), variables(architecture(meta.config)))
    for leaf in jax.tree.leaves(found):
        assert leaf.devices() == {jax.devices()[0]}


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_checkpoints_is_one_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        load_network(folder)
    assert str(error.value) == (
        f"The workdir {folder} holds no checkpoint; train there first: "
        f"python train.py --workdir={folder}."
    )
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
