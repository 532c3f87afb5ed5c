import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import paper_report, paper_rows, trained
from urnet_jax import config as config_lib
from urnet_jax.errors import UserError
from urnet_jax.runs import checkpoint
from urnet_jax.train import state

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(folder: pathlib.Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks/paper.py"), "--data=digits", "--base=resnet8",
         "--base_epochs=3", "--epochs_scale=0.004", *arguments],
        cwd=folder, env=os.environ | {"JAX_PLATFORMS": "cpu"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with start(folder, *arguments) as process:
        printed, errors = process.communicate(timeout=500)
    return subprocess.CompletedProcess(process.args, process.returncode, printed, errors)


@pytest.mark.slow
def test_rows_are_trained_recorded_and_gone_on_with(tmp_path: pathlib.Path):
    first = run(tmp_path, "--rows=urnet")
    assert first.returncode == 0, first.stderr
    both = run(tmp_path, "--rows=urnet,random_drop_test")
    assert both.returncode == 0, both.stderr
    assert "urnet: measured already" in both.stdout and "base: measured already" in both.stdout
    (path,) = (tmp_path / "runs/benchmarks/paper").glob("*/*.json")
    record = json.loads(path.read_text())
    assert {row["group"] for row in record["rows"]} == {"base", "urnet", "random_drop_test"}
    assert [row["scale"] for row in record["rows"] if row["group"] == "urnet"] == [
        *paper_rows.SCALES
    ]
    dropped = [row for row in record["rows"] if row["group"] == "random_drop_test"]
    for row in dropped:  # With hard work or none, the share that was asked for is used.
        assert row["usage_mean"] == pytest.approx(row["scale"], abs=0.03)
    # All blocks on, it is the plain network with as many epochs more.
    assert dropped[-1]["top1_percent"] > dropped[0]["top1_percent"]
    assert path.parent.name == "resnet8_digits"
    names = {file.name for file in path.with_suffix("").iterdir()}
    assert names == {"table.md", "table.csv", "table1.png", "figure4_urnet.png"}
    assert {row["step"] for row in record["rows"] if row["group"] == "base"} == {67}
    for name in ("base", "urnet", "random_drop_test"):
        workdir = tmp_path / "runs/paper" / name
        assert len(checkpoint.steps(workdir)) == 1
    other = run(tmp_path, "--rows=urnet", "--base_epochs=2")
    assert other.returncode == 2
    assert "runs/paper/base holds a run with pretrain.epochs 3.0, and 2.0" in other.stderr


@pytest.mark.parametrize("name", paper_rows.SETS["table1"])
def test_a_checkpoint_of_the_papers_largest_network_is_small_enough_to_carry(name: str):
    config = config_lib.load(f"table1:{name}")
    config.update_from_flattened_dict(paper_rows.SHORT)  # with Adam for the gates, which is more
    assert config.model.depth == 110
    leaves = jax.tree.leaves(state.abstract_state(config, "joint", 1))
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) < 15.5e6  # of 16 MB


def stopped_after(step: int, row: pathlib.Path, *arguments: str) -> str:
    """What a run says that is told to stop when the row has a checkpoint behind `step`."""
    with start(row.parent.parent, *arguments) as process:
        while not any(held > step for held in checkpoint.steps(row)):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.terminate()
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "Stopped by a signal: what was in training has saved" in errors
    return printed


@pytest.mark.slow
def test_a_row_that_is_stopped_goes_on_elsewhere(tmp_path: pathlib.Path):
    long, there = ("--rows=urnet", "--epochs_scale=50"), ("--workdir=carried", "--output=recorded")
    printed = stopped_after(0, tmp_path / "runs/urnet", *long, "--workdir=runs", "--output=made")
    assert "| base |" in printed  # What there is is written.
    (first,) = checkpoint.steps(tmp_path / "runs/urnet")
    (tmp_path / "runs").rename(tmp_path / "carried")
    (tmp_path / "made").rename(tmp_path / "recorded")
    # A row that has begun needs the plain network no more.
    shutil.rmtree(tmp_path / "carried/base")
    printed = stopped_after(first, tmp_path / "carried/urnet", *long, *there)
    assert "base: measured already" in printed and not (tmp_path / "carried/base").exists()
    (later,) = checkpoint.steps(tmp_path / "carried/urnet")
    assert later > first > 0
    # Without the plain network's run its record is of no use: it is trained again.
    anew = run(tmp_path, "--rows=urnet", "--workdir=anew", "--output=recorded")
    assert anew.returncode == 0, anew.stderr
    assert "base: measured already" in anew.stdout and "| urnet |" in anew.stdout
    assert checkpoint.steps(tmp_path / "anew/base") == [67]
    over = run(tmp_path, "--workdir=late", "--output=recorded", "--fresh", "--time_limit_s=1")
    assert over.returncode == 75 and "--time_limit_s is over: " in over.stderr, over.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rows=urnett"], "--rows holds 'urnett'; expected sets"),
        (["--base=vgg"], "--base is 'vgg'; expected resnet20"),
        (["--data=cifar10"], "--data_dir is missing"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path: pathlib.Path, arguments: list[str], sentence: str):
    found = run(tmp_path, *arguments)
    assert found.returncode == 2 and sentence in found.stderr, found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("name", paper_rows.chosen(",".join(paper_rows.SETS)))
def test_every_row_is_a_config(name: str):
    row = paper_rows.chosen(name)[name]
    config = config_lib.load(f"table1:{row.table1}")
    config.update_from_flattened_dict(dict(row.fields) | paper_rows.SHORT)
    config_lib.validate(config)


@pytest.mark.parametrize(("changes", "of"), [("choices", "urnet"), ("ablation", "ours")])
def test_choices_change_one_thing_of_a_row(changes: str, of: str):
    short = config_lib.flatten(config_lib.load(f"table1:{of}")) | paper_rows.SHORT
    rows = paper_rows.SETS[changes]
    together = {  # fields that one choice needs
        "straight_through": {"gate.straight_through", "gate.sigmoid_probability"},
        "gates_by_sgd": {name for name in paper_rows.SHORT if "gate_" in name},
        "ours_by_sgd": {name for name in paper_rows.SHORT if "gate_" in name},
        "ours_by_sample": {"scale.draw", "scale.loss"},
        "ours_scale_to_1": {"scale.min", "scale.max"},
    }
    for name, row in rows.items():
        differing = {field for field, value in row.fields.items() if short[field] != value}
        assert row.table1 == of and differing == together.get(name, set(row.fields)), name
        assert len(differing) == 1 or name in together


def test_rows_hold_the_numbers_of_their_names():
    for name, row in (paper_rows.SETS["figure5"] | paper_rows.SETS["figure8"]).items():
        config, number = config_lib.load(f"table1:{row.table1}"), float(name.partition("_")[2])
        config.update_from_flattened_dict(dict(row.fields))
        assert row.table1 == "urnet" and config.scale.noise == 0.1
        if name.startswith("beta"):
            assert config.scale.beta == number and config.scale.schedule == "ranged"
        else:
            assert config.scale.fixed == number and config.scale.schedule == "fixed"
            assert config.eval.scales == (number,) and config.scale.beta == 2


def rows_of(network: str, top1: dict[float, float], usage: dict[float, float]) -> list[Any]:
    return [
        {
            "group": network, "scale": scale, "top1_percent": top1[scale], "blocks_mean": 9 * share,
            "blocks_std": 0.5, "usage_mean": share, "flops_mean": 8e7 * share,
        }
        for scale, share in usage.items()
    ]  # fmt: skip


@pytest.fixture
def record() -> dict[str, Any]:
    usage = {0.2: 0.3, 0.4: 0.4, 0.6: 0.55, 0.8: 0.8, 1.0: 1.0}
    networks = ["urnet", "beta_1", "beta_4", "beta_8"]
    rows = rows_of("base", {1.0: 90.0}, {1.0: 1.0})
    for network in networks:
        rows += rows_of(network, {s: 80 + 10 * s for s in usage}, usage)
    rows += rows_of("fixed_0.4", {0.4: 88.0}, {0.4: 0.42})
    rows += rows_of("random_drop_test", {s: 50 + 40 * s for s in usage}, usage)
    device = {"processor": "P", "kind": "cpu", "threads": 2}
    return {"rows": rows, "dataset": "cifar10", "base": "resnet20", "device": device}


def test_the_table_beside_the_paper(record: dict[str, Any]):
    found = paper_report.table(record)
    urnet = found[found["network"] == "urnet"].set_index("scale")
    # |0.3 - 0.2|, |0.55 - 0.6| of five S: 15 points / 5.
    assert urnet["usage_error"].to_numpy() == pytest.approx([3.0] * 5)
    assert urnet["to_plain"].to_numpy() == pytest.approx([-8, -6, -4, -2, 0])
    assert urnet.loc[0.2, "paper_to_plain"] == -1.0
    assert np.isnan(urnet.loc[0.4, "paper_to_plain"])  # Not known here.
    text = paper_report.to_markdown(found)
    assert (
        "| urnet | 82.00 (30; 30) | 84.00 (40; 40) | 86.00 (55; 55) | 88.00 (80; 80) | "
        "90.00 (100; 100) | 3.0 |"
    ) in text
    assert urnet.loc[0.2, "flops_mean"] == pytest.approx(2.4e7)
    assert "| ... to plain, the paper's ResNet-110 | -1.0 |  | +0.5 | +0.5 | +0.4 | 4.2 |" in text
    assert "| base |  |  |  |  | 90.00 (100; 100) |  |" in text
    hundred = paper_report.to_markdown(paper_report.table(record | {"dataset": "cifar100"}))
    assert "| ... to plain, the paper's ResNet-110 |  |  |  |  |  | 11.3 |" in hundred
    digits = paper_report.table(record | {"dataset": "digits"})
    assert np.isnan(digits[["paper_to_plain", "paper_usage_error"]].to_numpy()).all()
    assert "paper" not in paper_report.to_markdown(digits)


def test_figures_wait_for_their_networks(record: dict[str, Any], tmp_path: pathlib.Path):
    path = tmp_path / "device.json"
    names = {file.name for file in paper_report.write(record, path, "no_runs")}
    assert {"table1.png", "figure5.png", "figure8.png"} <= names
    assert not {"choices.png", "ablation.png"} & names
    scales = {s: s for s in paper_rows.SCALES}
    record["rows"] += rows_of("ours", scales, scales) + rows_of("ours_beta_8", scales, scales)
    names = {file.name for file in paper_report.write(record, path, "no_runs")}
    assert "ablation.png" in names and "choices.png" not in names
    record["rows"] = [row for row in record["rows"] if row["group"] in ("base", "beta_1")]
    names = {file.name for file in paper_report.write(record, path, "no_runs")}
    assert not {"table1.png", "figure5.png", "figure8.png"} & names


def test_an_unknown_row():
    with pytest.raises(UserError, match="--rows holds 'x'"):
        paper_rows.chosen("table1,x")


def test_a_set_comes_with_the_row_that_it_is_compared_with(tmp_path: pathlib.Path):
    figures = {
        "table1": {"table1.png"},
        "figure5": {"figure5.png"},
        "figure8": {"figure8.png"},
        "choices": {"choices.png"},
        "ablation": {"ablation.png"},
    }
    assert figures.keys() == paper_rows.SETS.keys()
    device = {"processor": "P", "kind": "cpu", "threads": 2}
    usage = {s: s for s in paper_rows.SCALES}
    for name, drawn in figures.items():
        (tmp_path / name).mkdir()
        rows = [
            row for network in paper_rows.chosen(name) for row in rows_of(network, usage, usage)
        ]
        alone = {"rows": rows, "dataset": "digits", "base": "resnet20", "device": device}
        written = paper_report.write(alone, tmp_path / name / "device.json", "no_runs")
        names = {file.name for file in written}
        assert drawn < names and len(names) == 3 + (name != "table1"), name


def test_settings_from_before_a_field_are_the_same():
    settings = {"scale.beta": 2.0, "joint.epochs": 100 * 0.07, "gate.noise": False}
    before, other = {"scale.beta": 2.0, "joint.epochs": 7.0}, settings | {"scale.beta": 4.0}
    assert trained.same_settings(before, settings) and trained.same_settings(
        {"base": before}, {"base": settings}
    )
    assert not trained.same_settings(before, settings | {"gate.noise": True})
    assert not trained.same_settings({"base": before}, {"base": other})


def test_what_a_plain_network_does_not_heed_is_no_setting_of_it():
    plain = {"model.gated": False, "joint.epochs": 0.0, "joint.learning_rate": 0.1}
    changed = {"scale.beta": 8.0, "model.gate_prior": 9.0, "joint.learning_rate": 0.2}
    assert trained.same_settings(plain, plain | changed)
    assert not trained.same_settings(plain, plain | {"model.gated": True})
    assert not trained.same_settings(plain, plain | {"joint.epochs": 1.0})
    dropped = plain | {"gate.random_drop": "always"}
    assert not trained.same_settings(dropped, dropped | {"scale.beta": 8.0})
    trains = plain | {"joint.epochs": 1.0}
    assert not trained.same_settings(trains, trains | {"joint.learning_rate": 0.2})
