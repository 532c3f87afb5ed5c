"""A network with channel gates is trained, evaluated, exported and refused as any other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from urnet_jax import config as config_lib
from urnet_jax.data import augment
from urnet_jax.data.splits import examples
from urnet_jax.errors import UserError
from urnet_jax.evaluate import calibration, inspection, job, pruning
from urnet_jax.nets import network
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.mode import Build
from urnet_jax.runs import export, pretrained, torch_files, writers
from urnet_jax.runs.load import load_network
from urnet_jax.train import loop

SEEN = {"gate_group": 8, "gate_scale": True, "gate_prior": 20.0, "gate_bias": 0.0}


def channel_config(tiny: Any, model: Any, **fields: Any) -> config_lib.Config:
    """As configs/cifar10_resnet20_bas.py has it, on the digits."""
    shipped = config_lib.load("cifar10_resnet20_bas")
    config = tiny(
        {"pretrain.epochs": 0.1, "gates.epochs": 0.1, "joint.epochs": 0.4, "scale.of": "flops",
         "gate.sigmoid_probability": 0.0, "gate.straight_through": True, "gate.noise": True}
        | fields
    )  # fmt: skip
    with config.unlocked():
        config.model = ConfigDict(shipped.model.to_dict() | {"depth": 8} | model)
    return config


@pytest.fixture(scope="module")
def resizable(tiny, tmp_path_factory) -> Any:
    """The workdir of a run, and its config."""
    workdir, config = tmp_path_factory.mktemp("channels") / "run", channel_config(tiny, SEEN)
    loop.train_and_evaluate(config, workdir)
    return workdir, config


def test_every_execution_counts_and_answers_alike(resizable, tmp_path):
    workdir, _ = resizable
    found = []
    for how in ("dense", "auto"):
        summary = job.evaluate_workdir(
            workdir, scales=(0.3, 1.0), execution=how, output=tmp_path / how, report=how == "auto"
        )
        found.append(summary[["top1_percent", "flops_mean", "distinct_paths"]].to_numpy())
    np.testing.assert_allclose(*found)
    page = (tmp_path / "auto" / "report.html").read_text()
    assert "Its 14 groups of 8 channels, called blocks below, see the features" in page


def test_the_table_names_what_gates_switch(resizable, tmp_path, capsys):
    job.evaluate_workdir(resizable[0], scales=(1.0,), output=tmp_path)
    assert "groups of 8 channels used of 14" in " ".join(capsys.readouterr().out.split())


def test_it_is_calibrated_and_looked_into(resizable):
    workdir, _ = resizable
    found = calibration.calibrate_workdir(workdir, scales=(0.4, 0.8), images=100, progress=False)
    assert found.error < 0.1
    table: Any = inspection.load(workdir).gates((0.4,))
    assert table["block"].max() == 14


def test_what_is_exported_is_taken_back(resizable, tmp_path):
    workdir, config = resizable
    export.export_workdir(workdir, tmp_path / "x.safetensors", "newest")
    tensors = torch_files.read_state_dict(tmp_path / "x.safetensors")
    assert tensors["layer2.0.gate.fc2.weight"].shape == (4, 16)
    assert tensors["layer2.0.gate.bn.running_mean"].shape == (16,)
    again = config.copy_and_resolve_references()
    again.init["from"] = str(tmp_path / "x.safetensors")
    _, *expected = load_network(workdir)
    jax.tree.map(
        np.testing.assert_array_equal, pretrained.initial_variables(again), tuple(expected)
    )


def test_channels_that_no_image_uses_are_cut(resizable, one_cost, finished, tmp_path, capsys):
    workdir, _ = resizable
    file = tmp_path / "small.safetensors"
    assert pruning.prune_workdir(workdir, file, 0.4, images=100) < 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "of 14 groups of 8 channels are used by 100 training images at S = 0.4" in printed
    small = torch_files.read_state_dict(file)
    assert small["layer1.0.conv1.weight"].shape[0] == small["layer1.0.conv2.weight"].shape[1]
    assert sum(t.shape[0] for name, t in small.items() if name.endswith("conv1.weight")) < 16 + 112
    with pytest.raises(UserError, match="--prune_at is 0.5, and the gates .* do not see S"):
        pruning.prune_workdir(one_cost, file, 0.5)
    for bad, sentence in ((0.4, "whose gates do not switch channels"), (1.5, "from 0 to 1")):
        with pytest.raises(UserError, match=sentence):
            pruning.prune_workdir(finished if bad == 0.4 else workdir, file, bad)


def test_with_all_channels_the_plain_network_answers_as_is_printed(resizable, tmp_path, capsys):
    workdir, config = resizable
    file = tmp_path / "whole.safetensors"
    assert pruning.prune_workdir(workdir, file, 1.0, images=100) == 1
    printed = " ".join(capsys.readouterr().out.split())
    plain = Architecture(
        "cifar", 8, 10, 8, config_lib.architecture(config).image_channels, gated=False
    )
    variables = pretrained.import_state_dict(
        torch_files.read_state_dict(file), plain, *network.init_variables(plain, Build(), 0)
    )
    _, unseen = calibration.halves(inspection.load(workdir), 100)
    images, labels = examples(unseen, np.arange(100))
    pixels = augment.normalize(jnp.asarray(images), *augment.normalization("digits"))
    output, _ = network.apply(
        network.graph(plain, Build()), *variables, pixels, GateInputs(jnp.ones(100))
    )
    right = 100 * np.mean(np.asarray(output.prediction).argmax(axis=1) == labels)
    assert f"{right:.2f} % as this plain network" in printed


def test_blocks_and_channels_under_one_s(tiny, tmp_path, capsys):
    """Trained, evaluated in two executions, exported and taken back, and cut."""
    workdir, config = tmp_path / "run", channel_config(tiny, SEEN | {"gate_blocks": True})
    loop.train_and_evaluate(config, workdir)
    found = []
    for how in ("dense", "auto"):
        summary = job.evaluate_workdir(
            workdir, scales=(0.4, 1.0), execution=how, output=tmp_path / how
        )
        found.append(summary[["top1_percent", "flops_mean", "distinct_paths"]].to_numpy())
    np.testing.assert_allclose(*found)
    run: Any = inspection.load(workdir)
    assert "block- and channel-gated ResNet-8" in capsys.readouterr().out
    gates, start = run.evaluate((0.4,)).gates[0], 0
    for block in run.arch.cost.blocks:  # A block is open if some of its channels are.
        own = gates[:, start : start + block.num_gates]
        np.testing.assert_array_equal(own[:, 0], own[:, 1:].any(axis=1))
        start += block.num_gates
    again = config.copy_and_resolve_references()
    again.init["from"] = str(tmp_path / "x.safetensors")
    export.export_workdir(workdir, again.init["from"], "newest")
    _, *expected = load_network(workdir)
    jax.tree.map(
        np.testing.assert_array_equal, pretrained.initial_variables(again), tuple(expected)
    )
    again.model.gate_blocks = False
    with pytest.raises(UserError, match="gate_blocks False, not True"):
        pretrained.initial_variables(again)
    pruning.prune_workdir(workdir, tmp_path / "small.safetensors", 0.4, images=100)
    printed = " ".join(capsys.readouterr().out.split())
    assert "17 blocks and groups of 8 channels are used" in printed


def test_its_gates_are_found_by_type(resizable):
    _, config = resizable
    paths = network.gate_paths(*config_lib.network(config))
    assert {path[-2] for path in paths} == {"fc1", "fc2", "bn"}
    assert all("gate" in path for path in paths) and len(paths) == 3 * 7


@pytest.fixture(scope="module")
def one_cost(tiny, tmp_path_factory) -> Any:
    """The workdir of a run whose gates see the image alone; an L0 loss without end closes them."""
    config = channel_config(
        tiny, {"gate_group": 4}, **{
            "pretrain.epochs": 0.0, "gates.epochs": 0.0, "joint.epochs": 3.0, "scale.beta": 0.0,
            "l0.weight": 20.0, "shaping.weight": 1.0, "shaping.fades_by": 0.2,
            "joint.gate_learning_rate_factor": 0.4, "eval.every_epochs": 0.0,
        },
    )  # fmt: skip
    workdir = tmp_path_factory.mktemp("one") / "run"
    loop.train_and_evaluate(config, workdir)
    return workdir


def test_gates_that_see_the_image_alone_have_one_cost(one_cost, capsys):
    usage = [row["usage"] for row in writers.read(one_cost) if row["kind"] == "train"]
    assert usage[-1] < 0.8 * usage[0]
    summary = job.evaluate_workdir(one_cost, report=True)
    assert list(summary["scale"]) == [1.0]
    page = (one_cost / "report.html").read_text()
    assert "Which gates look at the image?" in page and "all images cost the same" in page
    assert "see the image alone, and decide for each which of its 28 groups of 4 channels" in page
    assert "phase pretrain" not in page
    assert "The gates of this network see the image alone" in capsys.readouterr().out
    with pytest.raises(UserError, match="--scales asks for some S, and the gates"):
        job.evaluate_workdir(one_cost, scales=(0.5,))
    with pytest.raises(UserError, match="do not see S .*, so that there is nothing to calibrate"):
        calibration.calibrate_workdir(one_cost)


@pytest.mark.parametrize(
    ("model", "fields", "sentence"),
    [
        ({"gate_group": 5}, {}, "model.gate_group is 5, into which the 16 channels of stage 1"),
        ({}, {"scale.beta": 2.0}, "gate_scale is False, .* set scale.beta to 0, or model.gate"),
        (
            {}, {"scale.beta": 0.0, "shaping.weight": 1.0, "shaping.mean": "scale"},
            "set shaping.weight to 0, or model.gate_scale to True",
        ),
        (SEEN | {"gate_bias": 1.0}, {}, "model.gate_bias is 1.0, which moves what"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_one_sentence(tiny, model, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        config_lib.validate(channel_config(tiny, model, **fields))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("cifar10_resnet20_bas", ("paper", "short", "resizable", "both")),
        ("cifar10_resnet32_bas", ("paper", "short", "resizable", "both")),
        ("imagenet_resnet18_bas", ("paper", "resizable")),
        ("imagenet_resnet34_bas", ("paper", "resizable")),
        ("imagenet_resnet50_bas", ("paper", "resizable")),
    ],
)
def test_the_shipped_rows_are_whole(name, rows):
    for row in rows:
        config = config_lib.load(f"{name}:{row}")
        config_lib.validate(config)
        assert config_lib.heeds_scale(config) == (row in ("resizable", "both"))
        arch = config_lib.architecture(config)
        assert f"resnet{arch.depth}_bas" in name and name.startswith(arch.family)
    with pytest.raises(
        UserError, match=f"^{name} has no row 'long'; its rows are {', '.join(rows)}"
    ):
        config_lib.load(f"{name}:long")
