"""A kind of network that no room knows is trained, evaluated, costed, shown and exported."""

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from helpers.configs import ONE_PASS
from helpers.toy_network import AUX_WEIGHT, Toy, macs_by_hand
from urnet_jax import config as config_lib
from urnet_jax import kinds
from urnet_jax.config import Config
from urnet_jax.errors import UserError
from urnet_jax.evaluate import evaluation, inspection, job
from urnet_jax.nets import network
from urnet_jax.nets.contract import Description
from urnet_jax.nets.cost import macs_per_sample
from urnet_jax.nets.mode import Build
from urnet_jax.runs import export, pretrained
from urnet_jax.runs.load import load_network
from urnet_jax.train import loop
from urnet_jax.train.start import start_phase
from urnet_jax.xla import sharding

KIND = "helpers.toy_network:Toy"
ROOT = pathlib.Path(__file__).resolve().parents[2]


def toy_config(tiny: Any, **model: Any) -> Config:
    config = tiny({"eval.scales": (0.2, 1.0)})
    common = {name: config.model[name] for name in ("dtype", "precision", "gate_bias", "scan")}
    with config.unlocked():
        config.model = ConfigDict({"kind": KIND, "width": 8, "units": 2, **common, **model})
    return config.lock()


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory) -> pathlib.Path:
    """Of a run with all three phases, from the loop that trains every other network."""
    workdir = tmp_path_factory.mktemp("toy") / "run"
    loop.train_and_evaluate(toy_config(tiny), workdir)
    return workdir


def test_it_is_a_description():
    assert isinstance(Toy(10, 8, 1), Description)


def test_its_gates_are_found_by_type_and_not_by_name(tiny):
    paths = network.gate_paths(*config_lib.network(toy_config(tiny)))
    assert {path[-2:] for path in paths} == {("decider", "kernel"), ("decider", "bias")}
    assert len(paths) == 4


def test_each_phase_moves_its_own_parameters(workdir, tiny):
    config = toy_config(tiny)
    _, params, _ = load_network(workdir)
    begun = start_phase(config, "gates", 22.5, None, sharding.make_mesh())
    paths = network.gate_paths(*config_lib.network(config))
    moved = [len(jax.tree.leaves(begun.opt_state)), len(jax.tree.leaves(params))]
    assert moved[0] >= len(paths) and moved[1] == 4 + 2 * 6


def test_its_auxiliary_loss_is_trained_with_the_others(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert {line["phase"] for line in trained} == {"pretrain", "gates", "joint"}
    for line in trained:
        scale = 32.0 if line["phase"] != "pretrain" else 0.0
        assert (line["aux_loss"] > 0) == (line["phase"] != "pretrain")
        assert line["aux_loss"] < 100 * AUX_WEIGHT
        whole = line["task_loss"] + scale * line["scale_loss"] + line["aux_loss"]
        assert line["loss"] == pytest.approx(whole, rel=1e-3)


def test_it_is_evaluated_alike_by_every_execution(workdir, tmp_path):
    arrays = []
    for how in ("dense", "auto"):
        job.evaluate_workdir(workdir, execution=how, output=tmp_path / how, report=how == "auto")
        with np.load(tmp_path / how / "eval_samples.npz") as samples:
            arrays.append({name: samples[name] for name in samples.files})
    dense, auto = arrays
    np.testing.assert_array_equal(dense["gates"], auto["gates"])
    np.testing.assert_array_equal(dense["predictions"], auto["predictions"])
    assert dense["gates"].shape == (2, 360, 4)
    counted = [2 * np.array(macs_by_hand(Toy(10, 8, 1), gates)) for gates in dense["gates"]]
    np.testing.assert_array_equal(dense["flops"], counted)
    assert "Toy-2 on digits" in (tmp_path / "auto" / "report.html").read_text()


def test_its_cost_is_its_own():
    arch, rng = Toy(10, 8, 3, width=4, units=3), np.random.default_rng(0)
    gates = rng.integers(0, 2, (50, 6)).astype(np.float32)
    np.testing.assert_array_equal(macs_per_sample(arch, gates), macs_by_hand(arch, gates))
    in_jax = jax.jit(lambda gates: macs_per_sample(arch, gates))(gates)
    np.testing.assert_array_equal(in_jax, macs_by_hand(arch, gates))
    shares = np.array(macs_by_hand(arch, gates)) / arch.cost.full_macs
    np.testing.assert_allclose(arch.cost.share(gates), shares, rtol=1e-5)


def test_inspection_shows_it(workdir):
    gates: Any = inspection.load(workdir).gates()
    assert gates["block"].max() == 4 and len(gates) == 2 * 360 * 4
    assert gates["gate_logit"].notna().all()


def test_it_is_exported_and_taken_back(workdir, tiny, tmp_path):
    path = tmp_path / "toy.safetensors"
    export.export_workdir(workdir, path, "newest")
    assert set(safetensors.numpy.load_file(path)) == {
        f"{module}.{leaf}"
        for module in ("stem", "head", *(
            f"units.{n}.{part}" for n in (0, 1) for part in ("conv1", "conv2", "decider")
        ))
        for leaf in ("weight", "bias")
    }  # fmt: skip
    config = toy_config(tiny)
    config.init["from"] = str(path)
    found = pretrained.initial_variables(config)
    _, params, batch_stats = load_network(workdir)
    jax.tree.map(np.testing.assert_array_equal, found, (params, batch_stats))


def test_its_fields_are_the_configs(tiny):
    config = toy_config(tiny)
    config_lib.validate(config)
    assert "model.units" in config_lib.fields_of(config)
    assert "model.depth" not in config_lib.fields_of(config)
    with pytest.raises(UserError, match="model.units is 0; expected at least 1"):
        config_lib.validate(toy_config(tiny, units=0))
    with pytest.raises(UserError, match="model.units is 'two'; expected a whole number"):
        config_lib.validate(toy_config(tiny, units="two"))
    with pytest.raises(UserError, match="'model.depth' is not a config field"):
        config_lib.validate(toy_config(tiny, depth=8))


CONFIG = """
from ml_collections import ConfigDict
from urnet_jax import config as config_lib
from urnet_jax import kinds


def get_config():
    config = config_lib.load("digits")
    config.update_from_flattened_dict({fields!r})
    with config.unlocked():
        config.model = ConfigDict({model!r})
    return config
"""


@pytest.fixture(scope="module")
def config_file(tiny, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("config") / "toy.py"
    short = ONE_PASS | {"model.depth": 8, "pretrain.epochs": 0.1, "gates.epochs": 0.1}
    short |= {"joint.epochs": 0.1, "eval.every_epochs": 0.0}
    model = toy_config(tiny).model.to_dict()
    path.write_text(CONFIG.format(fields=short, model=model))
    return path


def test_a_config_file_with_it_is_whole(config_file):
    config = config_lib.load(str(config_file))
    config_lib.validate(config)
    assert "depth" not in config.model and "gate_network" not in config.model
    again = config_lib.from_json(config_lib.to_json(config))
    config_lib.validate(again)
    assert again == config


def test_it_is_trained_and_gone_on_with_from_the_command_line(config_file, start, tmp_path):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    for epochs, begins in (("0.1", "toy of 3 units"), ("0.2", "Going on from step 6")):
        flags = [f"--config={config_file}", "--workdir=run", "--config.model.units=3"]
        flags.append(f"--config.joint.epochs={epochs}")
        with start("train.py", *flags, cwd=tmp_path, PYTHONPATH=paths) as process:
            printed, errors = process.communicate()
        assert process.returncode == 0, errors
        assert begins in printed


def test_another_kind_in_a_workdir_is_one_sentence(workdir, tiny):
    with pytest.raises(UserError) as error:
        loop.train_and_evaluate(tiny(), workdir)
    assert (
        "gated ResNet-8 (cifar, width 16, shortcut A) for 10 classes at 8 px, not toy of 2"
        in str(error.value)
    )


def test_a_run_whose_kind_is_not_there_is_not_called_damaged(workdir, start, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    with start("evaluate.py", "--workdir=run", cwd=tmp_path) as process:
        _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.startswith(f"error: model.kind is '{KIND}', which cannot be found")
    assert "damaged" not in errors and (tmp_path / "run" / "checkpoints" / "29").is_dir()


def test_a_network_class_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(Toy, "network", "nowhere:Network")
    toy: Any = Toy(10, 8, 1)
    with pytest.raises(UserError, match="names 'nowhere:Network', which cannot be found"):
        network.make(toy, Build(), jax.random.key(0))


def test_a_field_that_no_config_can_hold_is_one_sentence():
    with pytest.raises(UserError, match="The field sizes of the network .* is of type list"):
        kinds.fields("helpers.toy_network:Strange")


def test_its_task_says_what_is_right(workdir):
    """A summary counts what the step says is right, and compares nothing itself."""
    run = inspection.load(workdir)
    found = run.evaluate((1.0,))
    assert found.correct is not None
    np.testing.assert_array_equal(found.right, found.predictions == found.labels)
    counts = np.ones((*found.right.shape, 2), np.int64)
    other = dataclasses.replace(found, correct=np.ones_like(found.right), counts=counts)
    assert evaluation.summarize(other)["top1_percent"].tolist() == [100.0]


@pytest.mark.parametrize("kind", ["nonsense", "helpers.no_such_room:Toy", f"{KIND}er"])
def test_a_kind_that_is_not_there_is_one_sentence(tiny, kind):
    with pytest.raises(UserError, match=f"model.kind is '{kind}', which cannot be found"):
        config_lib.validate(toy_config(tiny, kind=kind))
