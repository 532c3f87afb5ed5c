"""Workdirs that a run cannot go on in, and what it cannot begin from."""

import contextlib
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from helpers.folders import contents
from helpers.own_data import prepare
from helpers.sized_network import Sized
from helpers.toy_network import Toy
from urnet_jax.errors import UserError
from urnet_jax.runs import checkpoint, checksums, writers
from urnet_jax.runs.checkpoint import Checkpointer
from urnet_jax.runs.meta import Meta
from urnet_jax.train import loop, resume
from urnet_jax.train.state import abstract_state
from urnet_jax.xla import sharding

ROOT = pathlib.Path(__file__).resolve().parents[2]

HOLDS = (
    "The workdir {workdir} holds a checkpoint of a gated ResNet-8 (cifar, width 16, shortcut A) "
    "for 10 classes at 8 px, and the config asks for another ({differing}): choose another "
    "--workdir, or ask for what it holds."
)


@pytest.mark.parametrize(
    ("fields", "differing"),
    [
        ({"model.depth": 14}, "depth 14, not 8"),
        ({"model.gate_reduction": 4}, "gate_reduction 4, not 2"),
        ({"model.gated": False, "model.width": 8}, "width 8, not 16, gated False, not True"),
    ],
)
def test_another_network_is_refused_and_the_checkpoint_left_alone(
    fields, differing, finished, tiny
):
    before = contents(finished)
    with pytest.raises(UserError) as error:
        loop.train_and_evaluate(tiny(fields), finished)
    assert str(error.value) == HOLDS.format(workdir=finished, differing=differing)
    assert contents(finished) == before


def test_an_evaluation_that_fails_loses_no_training(tiny, tmp_path):
    count, workdir = {"train": 16, "test": 20}, tmp_path / "run"
    config = tiny({
        "data.name": "mydigits", "data.dir": str(tmp_path / "data"), "data.num_classes": 10,
        "data.augment": "random_resized_crop", "data.batch_size": 8, "pretrain.epochs": 0.0,
        "gates.epochs": 0.0, "joint.epochs": 1.0, "log.every_steps": 1,
        "eval.every_epochs": 0.0, "checkpoint.every_epochs": 0.0,
    })  # fmt: skip

    def trained() -> list[dict]:
        return [line for line in writers.read(workdir) if line["kind"] == "train"]

    prepare(tmp_path / "data", "mydigits", count, files={18: b"no image"}, named=True)
    for _ in range(2):  # The second time nothing is trained.
        with pytest.raises(UserError, match="digits/18.png"):
            loop.train_and_evaluate(config, workdir)
        assert checkpoint.steps(workdir) == [2]
    before = trained()
    shutil.rmtree(tmp_path / "data")
    prepare(tmp_path / "data", "mydigits", count, named=True)
    loop.train_and_evaluate(config, workdir)
    assert trained() == before and len(before) == 2
    assert [line["step"] for line in writers.read(workdir) if line["kind"] == "eval"][-1] == 2
    assert checkpoint.read_meta(workdir, 2).top1_percent is not None


def test_weights_that_depend_on_the_size_of_images_fit_that_size_alone():
    assert resume._fits_any_size(Toy(10, 8, 1), 16)
    assert not resume._fits_any_size(Sized(10, 8, 1), 16)
    assert resume._fits_any_size(Sized(10, 8, 1), 8)


def test_another_dataset_is_refused(finished, tiny):
    with pytest.raises(UserError) as error:
        loop.train_and_evaluate(tiny({"data.name": "cifar10"}), finished)
    assert str(error.value) == (
        f"The workdir {finished} holds a checkpoint of a network for digits, and the config asks "
        "for cifar10: choose another --workdir, or ask for what it holds."
    )


def test_a_training_split_of_another_length_is_refused(workdir, newest, tiny):
    meta = dataclasses.replace(checkpoint.read_meta(workdir, 29), steps_per_epoch=1000 / 64)
    checksums.replace_file(epath.Path(newest), "meta/metadata", json.dumps(meta.to_json()))
    before = contents(workdir)
    with pytest.raises(UserError) as error:
        loop.train_and_evaluate(tiny(), workdir)
    assert str(error.value) == (
        f"The workdir {workdir} holds a checkpoint of a run on 1,000 training images, and digits "
        "now has 1,437, which would train on other examples from here on: bring back the dataset "
        "as it was, or choose another --workdir."
    )
    assert contents(workdir) == before


@pytest.mark.parametrize("batch_size", [1, 7, 64, 192, 4096])
def test_every_length_is_found_again(batch_size, tiny, tmp_path):
    config = tiny({"data.batch_size": batch_size})
    for length in (1, 2, 3, 1437, 50_000, 1_281_167, 14_197_122):
        meta = Meta(1, "joint", 1, 11, length / batch_size, config)
        resume.check_num_examples(tmp_path, meta, length)


def test_another_optimiser_is_refused_within_a_phase(finished, tiny):
    changed = {"joint.clip_norm": 0.0, "joint.ema_decay": 0.9, "joint.learning_rate": 1.0}
    with pytest.raises(UserError) as error:
        loop.train_and_evaluate(tiny(changed), finished)
    assert str(error.value) == (
        f"The workdir {finished} holds a checkpoint of a phase that began with joint.clip_norm "
        "1.0, not 0.0 and joint.ema_decay 0.0, not 0.9: choose another --workdir, or ask for what "
        "it holds."
    )


def test_a_run_that_has_begun_does_not_begin_from_other_weights(finished, tiny):
    for fields, said in [
        ({"init.from": "other.pth"}, "init.from '', and the config asks for 'other.pth'"),
        ({"joint.init_from": "runs/x"}, "joint.init_from '', and the config asks for 'runs/x'"),
    ]:
        config = tiny(fields)
        with pytest.raises(UserError, match=f"run that began with {said}, from which"):
            resume.check_workdir(finished, config)


def test_what_a_run_began_from_may_be_moved(workdir, newest, tiny):
    meta = checkpoint.read_meta(workdir, 29)
    meta = dataclasses.replace(meta, config=tiny({"joint.init_from": "then/plain"}))
    checksums.replace_file(epath.Path(newest), "meta/metadata", json.dumps(meta.to_json()))
    assert resume.check_workdir(workdir, tiny({"joint.init_from": "now/plain"})) is not None


def test_init_from_must_be_a_run_of_the_same_network(finished, tiny, tmp_path):
    with pytest.raises(UserError) as error:
        resume.check_init_from(tiny({"gates.init_from": str(tmp_path)}), "gates")
    assert str(error.value) == (
        f"gates.init_from is {tmp_path}, which holds no checkpoint; name the workdir of a run."
    )
    for fields, differing in [
        ({"model.depth": 14}, "depth 14, not 8"),
        ({"model.gate_reduction": 4}, "gate_reduction 4, not 2"),
        ({"model.gated": False, "model.width": 8}, "width 8, not 16"),
    ]:
        config = tiny({"joint.init_from": str(finished), **fields})
        with pytest.raises(UserError) as error:
            loop.train_and_evaluate(config, tmp_path / "new")
        assert str(error.value) == (
            f"joint.init_from is {finished}, which holds a gated ResNet-8 (cifar, width 16, "
            "shortcut A) for 10 classes at 8 px, and the config asks for another network "
            f"({differing}): name a run of the same network."
        )
    assert not (tmp_path / "new").exists()
    plain = tiny({"joint.init_from": str(finished), "model.gated": False})
    resume.check_init_from(plain, "joint")


OLD = ROOT / "results" / "cifar10_resnet20" / "earlier_recipe" / "run"


def test_the_state_of_a_run_that_is_older_than_many_fields_is_restored(tmp_path):
    """All of it, the optimiser's too: what a state may hold besides must not change its form."""
    workdir = shutil.copytree(OLD, tmp_path / "run")
    meta = checkpoint.newest_meta(workdir)
    assert meta is not None
    abstract = abstract_state(
        meta.config, meta.phase, meta.steps_per_epoch, sharding.replicated(sharding.make_mesh())
    )
    with contextlib.closing(Checkpointer(workdir, keep=1, keep_best=1)) as checkpointer:
        restored = checkpointer.restore_state(meta.step, abstract)
    assert int(restored.step) == 3516 and int(restored.phase_step) == 3125
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored))


def test_a_prior_may_be_new_where_nobody_has_trained_gates(finished, tiny, tmp_path):
    loop.train_and_evaluate(
        tiny({"pretrain.epochs": 0.1, "gates.epochs": 0.0, "joint.epochs": 0.0}), tmp_path / "run"
    )
    prior = {"model.gate_prior": 20.0, "scale.of": "flops"}
    resume.check_init_from(tiny(prior | {"joint.init_from": str(tmp_path / "run")}), "joint")
    with pytest.raises(UserError, match="gate_prior 20.0, not 0.0"):
        resume.check_init_from(tiny(prior | {"joint.init_from": str(finished)}), "joint")


def test_another_controller_is_refused_and_named(finished, tiny):
    """Its multipliers are part of the state."""
    asked = {
        "scale.schedule": "anchors", "scale.anchors": (0.3, 0.9), "scale.dual_rate": 0.1,
    }  # fmt: skip
    with pytest.raises(UserError) as error:
        loop.train_and_evaluate(tiny(asked), finished)
    assert "run with scale.dual_rate 0.0 and scale.anchors ()" in str(error.value)
    assert "asks for 0.1 and (0.3, 0.9), to which its multipliers do not belong" in str(error.value)
