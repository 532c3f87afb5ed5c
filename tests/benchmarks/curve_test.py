import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import curve, curve_report, curve_rows, trained
from urnet_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def row(group: str, scale: float, top1: float, flops: float, calibration: str, seed: int = 0):
    return {
        "group": f"{group}, seed {seed}", "scale": scale, "top1_percent": top1,
        "flops_mean": flops, "flops_share": flops / 101, "seed": seed, "calibration": calibration,
        "distinct_paths": 1,
    }  # fmt: skip


RECORD: dict[str, Any] = {
    "base": "resnet20", "dataset": "digits", "base_flops": 100.0,
    "rows": [
        row("static ResNet-8", 1.0, 80.0, 30.0, ""),
        row("static ResNet-8", 1.0, 82.0, 30.0, "", seed=1),
        row("static ResNet-20", 1.0, 91.0, 100.0, ""),
        row("resizable", 0.2, 70.0, 20.0, "before"),
        row("resizable", 0.2, 71.0, 20.0, "after"),
        row("resizable", 0.65, 88.0, 65.0, "after")
        | {"distinct_paths": 12, "fixed_percent": 87.25},
        row("resizable", 1.0, 91.5, 101.0, "after"),
    ],
}  # fmt: skip


def test_the_table_has_shares_of_the_base_and_points_over_the_static_line():
    table: Any = curve_report.table(RECORD)
    assert list(table.columns) == curve_report.COLUMNS
    assert len(table) == 6 and table["S"].isna().sum() == 3  # nothing from before calibration
    resizable = table[table["network"] == "resizable"]
    np.testing.assert_allclose(resizable["flops_share"], [0.2, 0.65, 1.01])
    assert resizable["distinct_paths"].tolist() == [1, 12, 1]
    # The line is 81 (the mean of two seeds) at 30 %, 91 at 100 %: 86 at 65 %; no farther.
    over = curve_report.to_static(table)[3:]
    np.testing.assert_allclose(over, [np.nan, 2.0, np.nan])


def test_one_static_network_is_no_line():
    table: Any = curve_report.table({**RECORD, "rows": RECORD["rows"][2:]})
    assert np.isnan(curve_report.to_static(table)).all()


def test_files_are_written(tmp_path, capsys):
    written = curve_report.write(RECORD, tmp_path / "cpu.json")
    assert [path.name for path in written] == ["cpu.json", "curve.csv", "curve.png"]
    assert len(pd.read_csv(tmp_path / "curve.csv")) == 6
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "+2.00" in printed and "+0.75" in printed
    # At the cost of the static networks themselves: between 20 and 65 %, and S = 1.
    said = [line for line in printed.splitlines() if "this network there" in line]
    assert len(said) == 2
    assert "ResNet-8: 81.00 %, the mean of 2 runs, at 30.0 % of the FLOPs" in said[0]
    assert "74.78 %, -6.22 points" in said[0]
    assert "ResNet-20: 91.00 %, at 100.0 %" in said[1] and "91.4" in said[1]


@pytest.mark.parametrize(
    ("base", "depths"),
    [("resnet20", (8, 14, 20)), ("resnet56", (20, 32, 44, 56)), ("resnet8", (8,)),
     ("resnet14", (8, 14)), ("resnet110", (38, 74, 110))],
)  # fmt: skip
def test_static_networks_of_a_base(base, depths):
    assert curve_rows.depths(base) == depths


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--data=digits", "--base=vgg"], "--base is 'vgg'; expected resnet20"),
        (["--data=digits", "--rows=statik"], "--rows names 'statik'; expected some of static"),
        (["--data=digits", "--seeds=x"], "--seeds is 'x'; expected whole numbers"),
        (["--data=digits", "--weights_dir=gone"], "gone holds no resnet8-*.th; name its folder"),
        (["--data=digits", "--base=resnet2"], "--base is 'resnet2'; expected resnet20"),
        (["--data=digits", "--weights_dir=x", "--plain_epochs=3"], "no plain network is trained"),
        ([], "--data_dir is missing"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(flags, sentence):
    with pytest.raises(UserError) as error:
        curve._groups(curve.parse(["curve.py", *flags]), float("inf"))
    assert sentence in str(error.value)


def test_every_network_of_the_comparison_is_a_valid_config():
    values = curve.parse(["curve.py", "--data=digits", "--rows=static,gated,ablation"])
    asked = curve._asked(values, 3)
    assert len(asked) == 3 + 1 + len(curve_rows.CHANGED)
    settings = {name: trained.settings_of("cifar10_resnet20", f) for name, f in asked.items()}
    assert {held["seed"] for held in settings.values()} == {3}
    whole = settings["resizable"]
    # Each leaves out, or adds, what it says and nothing else.
    for name, fields in curve_rows.CHANGED.items():
        changed = settings[name]
        assert {field for field in whole if changed[field] != whole[field]} == set(fields)
    # Each network is trained for as many epochs.
    for name, of_one in settings.items():
        own = of_one["pretrain.epochs"] + of_one["joint.epochs"]
        assert own == (24 if name.startswith("static") else 24 - values.plain_epochs), name


@pytest.mark.slow
def test_the_comparison_on_the_digits(tmp_path):
    command = [
        sys.executable, str(ROOT / "benchmarks/curve.py"), "--data=digits", "--base=resnet8",
        "--plain_epochs=0.2", "--gated_epochs=0.2", "--workdir=runs", "--output=out",
    ]  # fmt: skip
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    first = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "out" / "resnet8_digits"
    table: Any = pd.read_csv(folder / "curve.csv")
    assert table["network"].nunique() == 2 and table["S"].notna().sum() == len(curve_rows.SCALES)
    (record,) = folder.glob("*.json")
    rows = json.loads(record.read_text())["rows"]
    assert {r["calibration"] for r in rows} == {"", "before", "after"}
    again = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("measured already") == 2
    other = [flag.replace("gated_epochs=0.2", "gated_epochs=0.3") for flag in command]
    refused = subprocess.run(other, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert refused.returncode == 2 and "holds a run with" in refused.stderr
