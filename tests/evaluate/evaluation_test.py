import dataclasses
import functools
import json
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers.configs import one_pass
from helpers.variables import init_variables
from urnet_jax.config import Config
from urnet_jax.data.batches import eval_batches
from urnet_jax.data.sources import open_split
from urnet_jax.errors import UserError
from urnet_jax.evaluate import evaluation, files, job
from urnet_jax.evaluate.evaluation import Evaluation
from urnet_jax.evaluate.step import make_eval_step
from urnet_jax.nets.architecture import Architecture
from urnet_jax.runs.checkpoint import Checkpointer
from urnet_jax.runs.meta import Meta
from urnet_jax.train import state

FILES = ["eval.csv", "eval.json", "eval_samples.npz", "top1_vs_flops.png", "block_usage.png"]
ARCH = Architecture("cifar", depth=8, num_classes=10, image_size=8, image_channels=1)


def small_config(**model) -> Config:
    """Three blocks on digits, gates neither all open nor all closed."""
    config = one_pass({"model.depth": 8, "model.gate_bias": 0.0})
    config.model.update(model)
    return config


@functools.cache
def network() -> tuple[Any, Any, Any]:
    """One compiled step and its params and batch_stats for all tests."""
    params, batch_stats = init_variables(small_config())
    return make_eval_step(small_config()), params, batch_stats


def run(batch_size: int, scales=(0.2, 0.6, 1.0)) -> Evaluation:
    config = small_config()
    split, (step, params, stats) = open_split(config.data, "test"), network()
    return evaluation.evaluate(step, params, stats, split, config, scales, batch_size, False)


def save_run(workdir, config: Config, phase: str, variables: tuple[Any, Any]) -> None:
    begun = state.begin_phase(*variables, config, phase, 20, step=7)
    checkpointer = Checkpointer(workdir, keep=1)
    checkpointer.save(begun, Meta(7, phase, 0, 10, 20, config))
    checkpointer.close()


@pytest.fixture(scope="module")
def whole() -> Evaluation:
    return run(360)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    save_run(path, small_config(), "joint", network()[1:])
    return path


@pytest.fixture
def by_hand() -> Evaluation:
    """Four samples at two scales on three blocks."""
    gates = np.array(
        [[[0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0]], [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]]
    )
    return Evaluation(
        arch=ARCH,
        scales=(0.5, 1.0),
        index=np.arange(4),
        labels=np.array([0, 1, 2, 3]),
        predictions=np.array([[0, 1, 2, 9], [0, 1, 2, 3]]),
        loss=np.array([[0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 0.0, 2.0]], np.float32),
        gates=gates.astype(np.uint8),
        flops=np.array([[100.0, 200.0, 200.0, 300.0], [400.0, 300.0, 400.0, 400.0]]),
    )


@pytest.mark.parametrize("batch_size", [7, 100, 1000])
def test_every_example_counts_once_and_alike_at_any_batch_size(whole, batch_size):
    other = run(batch_size)
    np.testing.assert_array_equal(other.index, np.arange(360))
    for name in ("labels", "predictions", "gates", "flops"):
        np.testing.assert_array_equal(getattr(other, name), getattr(whole, name))
    np.testing.assert_allclose(other.loss, whole.loss, rtol=1e-4, atol=1e-5)
    pd.testing.assert_frame_equal(evaluation.summarize(other), evaluation.summarize(whole))


def test_correct_counts_the_padded_batches_own_examples(whole):
    config = small_config()
    batches = eval_batches(open_split(config.data, "test"), config.data, 100)
    eval_step, *variables = network()
    correct = 0
    for batch in batches:
        scale = np.full(100, 0.6, np.float32)
        result = eval_step(*variables, batch["image"], batch["label"], scale, batch["index"])
        correct += int(np.sum(np.asarray(result["correct"]) & batch["mask"]))
    row = evaluation.summarize(whole).set_index("scale").loc[0.6]
    assert (row.examples, row.correct) == (360, correct)


def test_flops_are_those_of_the_gates(whole):
    assert whole.gates.shape == (3, 360, 3)
    assert 0 < whole.gates.mean() < 1
    cost = whole.arch.cost
    expected = 2 * (cost.always_macs + whole.gates.astype(int) @ cost.unit_macs)
    np.testing.assert_array_equal(whole.flops, expected)
    assert whole.full_flops == 2 * (cost.always_macs + cost.unit_macs.sum())


def test_scales_are_sorted_and_repeats_dropped(whole):
    other = run(360, scales=[1.0, 0.2, 0.6, 0.2])
    assert other.scales == (0.2, 0.6, 1.0)
    np.testing.assert_array_equal(other.gates, whole.gates)


def test_summary_by_hand(by_hand):
    low, high = evaluation.summarize(by_hand).to_dict("records")
    full = 2 * ARCH.cost.full_macs
    assert low == {
        "scale": 0.5,
        "examples": 4,
        "correct": 3,
        "top1_percent": 75.0,
        "loss_mean": 1.0,
        "blocks_mean": 1.0,
        "blocks_std": pytest.approx(0.5**0.5),
        "blocks_min": 0,
        "blocks_max": 2,
        "blocks_total": 3,
        "usage_mean": pytest.approx(1 / 3),
        "flops_mean": 200.0,
        "flops_std": pytest.approx(5000**0.5),
        "flops_full": full,
        "flops_share": pytest.approx(200 / full),
        "distinct_paths": 3,
    }
    assert (high["correct"], high["top1_percent"], high["blocks_mean"]) == (4, 100.0, 2.75)
    assert (high["blocks_min"], high["blocks_max"], high["flops_mean"]) == (2, 3, 375.0)
    assert high["distinct_paths"] == 2


def test_files_hold_the_evaluation(by_hand, tmp_path):
    directory = tmp_path / "new" / "folder"
    paths = files.write(by_hand, directory, {"step": 7, "phase": "joint"})
    assert [path.name for path in paths] == FILES
    assert sorted(path.name for path in directory.iterdir()) == sorted(FILES)

    summary = evaluation.summarize(by_hand)
    rows = pd.read_csv(directory / "eval.csv")
    pd.testing.assert_frame_equal(rows, summary, rtol=1e-12)
    record = json.loads((directory / "eval.json").read_text())
    assert record["rows"] == summary.to_dict("records")
    assert (record["step"], record["phase"], record["scales"]) == (7, "joint", [0.5, 1.0])
    assert record["architecture"] == ARCH.describe()
    assert record["versions"]["jax"] == jax.__version__
    assert record["device"]["kind"] == jax.devices()[0].device_kind
    assert record["device"]["count"] == jax.local_device_count()
    with np.load(directory / "eval_samples.npz") as samples:
        for name in ("scales", "index", "labels", "predictions", "loss", "gates", "flops"):
            np.testing.assert_array_equal(samples[name], getattr(by_hand, name))
    for name in FILES[3:]:
        with Image.open(directory / name) as image:
            assert len(np.unique(np.asarray(image))) > 10  # something is drawn


def test_logits_are_not_written(by_hand, tmp_path):
    logits = np.zeros(by_hand.gates.shape, np.float32)
    files.write(dataclasses.replace(by_hand, gate_logits=logits), tmp_path, {})
    with np.load(tmp_path / "eval_samples.npz") as samples:
        assert "gates" in samples and "gate_logits" not in samples


def test_a_diverged_network_is_written_as_json(by_hand, tmp_path):
    by_hand.loss[0, 0] = np.nan
    files.write(by_hand, tmp_path, {})
    rows = json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)["rows"]
    assert [row["loss_mean"] for row in rows] == [None, 0.5]


def test_writing_again_replaces_the_files(by_hand, tmp_path):
    for step in (1, 2):
        files.write(by_hand, tmp_path, {"step": step})
    assert json.loads((tmp_path / "eval.json").read_text())["step"] == 2
    assert len(list(tmp_path.iterdir())) == len(FILES)


def test_evaluate_workdir_needs_only_the_workdir(workdir, whole, capsys):
    summary = job.evaluate_workdir(workdir, scales=[1.0, 0.6, 0.2], batch_size=50)
    pd.testing.assert_frame_equal(summary, evaluation.summarize(whole))
    record = json.loads((workdir / "eval.json").read_text())
    expected = {"dataset": "digits", "split": "test", "phase": "joint", "step": 7}
    assert expected.items() <= record.items()
    printed = capsys.readouterr().out.splitlines()
    assert [line.rsplit("/")[-1] for line in printed[-5:]] == FILES
    assert printed[-1] == str(workdir / "block_usage.png")


def test_evaluate_workdir_on_another_split_and_folder(workdir, tmp_path):
    summary = job.evaluate_workdir(workdir, split="train", output=tmp_path / "out")
    assert tuple(summary.scale) == small_config().eval.scales
    assert set(summary.examples) == {1437}
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["split"] == "train"


@pytest.mark.parametrize(
    ("gated", "phase", "said"),
    [(False, "joint", "network is plain"), (True, "pretrain", "phase pretrain")],
)
def test_where_nothing_is_gated_s_is_ignored(tmp_path, capsys, gated, phase, said):
    config = small_config(gated=gated)
    variables = network()[1:] if gated else init_variables(config)
    save_run(tmp_path, config, phase, variables)
    summary = job.evaluate_workdir(tmp_path, scales=[0.2, 0.5], report=True)
    assert said in capsys.readouterr().out
    assert "whatever S is. So there" in (tmp_path / "report.html").read_text()
    (row,) = summary.to_dict("records")
    assert (row["scale"], row["usage_mean"], row["flops_share"], row["flops_std"]) == (1, 1, 1, 0)


def test_a_page_that_is_not_written_again_goes(workdir, tmp_path, capsys):
    for report, said in [(True, False), (False, True), (False, False)]:
        job.evaluate_workdir(workdir, scales=[0.5], output=tmp_path, report=report)
        printed = capsys.readouterr().out
        sentence = f"Removed {tmp_path / 'report.html'}, which shows an older evaluation"
        assert (sentence in printed) is said
        assert (tmp_path / "report.html").exists() is report


@pytest.mark.parametrize("scales", [[0.5, 1.3], [-0.1], [float("nan")], []])
def test_bad_scales_are_one_sentence(tmp_path, scales):
    with pytest.raises(UserError, match="given .* expected numbers from 0 to 1") as error:
        job.evaluate_workdir(tmp_path, scales=scales)
    assert str(error.value).count(". ") == 0


def test_other_bad_input_is_one_sentence(workdir, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for arguments, words in [
        ({"batch_size": -1}, "batch_size is -1"),
        ({"split": "validation"}, "split is 'validation'"),
        ({"output": file}, "cannot be made a folder"),
    ]:
        with pytest.raises(UserError, match=words):
            job.evaluate_workdir(workdir, **arguments)
    with pytest.raises(UserError, match="no checkpoint"):
        job.evaluate_workdir(tmp_path / "empty")
