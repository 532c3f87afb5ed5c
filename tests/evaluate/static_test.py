"""The static line, of plain networks that were really trained and evaluated."""

import json
import pathlib
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError
from urnet_jax.evaluate import job, static
from urnet_jax.train import loop

TWICE = ("one", "two")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny) -> pathlib.Path:
    """A folder with evaluations of plain networks: two runs of one, and one of half its width."""
    folder = tmp_path_factory.mktemp("plain")
    for name, fields in (
        ("one", {}), ("two", {"seed": 1}), ("narrow", {"model.width": 4, "model.depth": 14}),
    ):  # fmt: skip
        alone = {"model.gated": False, "gates.epochs": 0.0, "joint.epochs": 0.0}
        config = tiny(alone | {"pretrain.epochs": 0.5} | fields)
        loop.train_and_evaluate(config, folder / "runs" / name)
        job.evaluate_workdir(folder / "runs" / name, output=folder / "found" / name)
    return folder / "found"


def test_points_are_means_over_the_runs_of_a_network(plain):
    records = {path.parent.name: json.loads(path.read_text()) for path in plain.rglob("eval.json")}
    found = static.read([plain], dataset="digits", split="test")
    assert list(found["network"]) == ["ResNet-14", "ResNet-8"]
    assert list(found["runs"]) == [1, 2] and list(found["steps"]) == ["11", "11"]
    tops = {name: record["rows"][0]["top1_percent"] for name, record in records.items()}
    mean = np.mean([tops[name] for name in TWICE])
    np.testing.assert_allclose(found["top1_percent"], [tops["narrow"], mean])
    narrow = config_lib.load("digits")
    narrow.model.update({"gated": False, "width": 4, "depth": 14})
    macs = config_lib.architecture(narrow).cost.full_macs
    assert found["flops"].iloc[0] == 2 * macs
    one = static.read([plain / "one"], dataset="digits", split="test")
    assert list(one["top1_percent"]) == [tops["one"]]


def test_comparison_is_between_the_networks_own_points():
    own = pd.DataFrame({
        "scale": [1.0, 0.2], "flops_mean": [30.0, 10.0], "top1_percent": [90.0, 70.0],
        "flops_full": [40.0, 40.0],
    })  # fmt: skip
    line = pd.DataFrame({
        "network": ["a", "b", "c", "d"], "flops": [5.0, 10.0, 15.0, 39.0],
        "top1_percent": [50.0, 71.0, 74.5, 91.0], "runs": [1, 1, 3, 1],
        "steps": ["9", "9", "9", "9"],
    })  # fmt: skip
    found = static.compare(own, line)
    np.testing.assert_allclose(found["resizable_percent"], [np.nan, 70, 75, 90])
    np.testing.assert_allclose(found["over"], [np.nan, -1, 0.5, -1])
    np.testing.assert_allclose(found["flops_share"], [0.125, 0.25, 0.375, 0.975])
    # At S = 1 it is as dear as it gets; at another S it is not, and nothing is said of beyond.
    unknown = static.compare(own.assign(scale=[0.8, 0.2]), line)
    np.testing.assert_allclose(unknown["over"], [np.nan, -1, 0.5, np.nan])
    said = static.sentences(found)
    assert said[0].endswith("at 12.5 % of the FLOPs; this network was not evaluated at that cost.")
    assert said[2] == (
        "c: 74.50 %, the mean of 3 runs, at 37.5 % of the FLOPs; this network there: 75.00 %, "
        "+0.50 points."
    )
    unlike = static.sentences(found.assign(steps="3 to 9"))[2]
    assert "the mean of 3 runs of 3 to 9 steps, at 37.5 %" in unlike


def test_evaluation_and_page_show_the_line(finished, plain, tmp_path, capsys):
    job.evaluate_workdir(finished, scales=[0.2, 1.0], output=tmp_path / "alone")
    capsys.readouterr()
    job.evaluate_workdir(
        finished, scales=[0.2, 1.0], output=tmp_path / "out", report=True, static=[plain]
    )
    printed = capsys.readouterr().out
    assert re.search(
        r"^ResNet-8: .* %, the mean of 2 runs, at 9\d\.\d % of the FLOPs", printed, re.M
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "At the cost of plain networks" in page and "The squares are plain networks" in page
    drawn, alone = (
        np.asarray(Image.open(tmp_path / name / "top1_vs_flops.png")) for name in ("out", "alone")
    )
    assert not np.array_equal(drawn, alone)


@pytest.mark.parametrize(
    "change, words",
    [
        (None, "there is no eval.json: name the folders of plain networks"),
        ({"split": "train"}, "is of digits train, and this evaluation is of digits test"),
        ({"architecture": "gated ResNet-8"}, "is of a gated ResNet-8: name evaluations of plain"),
        ({"rows": []}, "is not an evaluation by evaluate.py"),
        ({"rows": "none"}, "is not an evaluation by evaluate.py"),
    ],
)
def test_other_files_are_refused(plain, tmp_path, change, words):
    if change is not None:
        record = json.loads((plain / "one" / "eval.json").read_text()) | change
        if change.get("architecture"):
            record["phase"] = "joint"
        (tmp_path / "eval.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=re.escape(words)):
        static.read([tmp_path], dataset="digits", split="test")


def test_it_is_refused_before_the_evaluation(finished, tmp_path):
    with pytest.raises(UserError, match="there is no eval.json"):
        job.evaluate_workdir(finished, output=tmp_path / "out", static=[tmp_path])
    assert not list((tmp_path / "out").iterdir())
