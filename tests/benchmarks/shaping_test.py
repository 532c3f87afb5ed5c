import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import shaping, shaping_report, trained
from urnet_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def row(group: str, scale: float, top1: float, flops: float, calibration: str, share: float):
    return {
        "group": f"{group}, seed 0", "scale": scale, "top1_percent": top1, "flops_mean": flops,
        "flops_share": share, "seed": 0, "calibration": calibration, "distinct_paths": 7,
        "gates": 336, "always": 100, "never": 36, "conditional": 200,
    }  # fmt: skip


RECORD: dict[str, Any] = {
    "base": "resnet20", "dataset": "cifar10",
    "rows": [
        row("price 0.3", 1.0, 80.0, 4e7, "", 0.5),
        row("price 0.3 unshaped", 1.0, 79.0, 5e7, "", 0.6),
        row("channels by S", 0.5, 70.0, 3e7, "before", 0.46),
        row("channels by S", 0.5, 71.0, 4e7, "after", 0.49),
        row("channels by S", 1.0, 81.0, 8e7, "after", 1.0),
    ],
}  # fmt: skip
STATIC = pd.DataFrame(
    {"network": ["a", "b"], "flops": [2e7, 6e7], "top1_percent": [70.0, 90.0], "runs": [1, 1]}
)


def test_the_table_has_every_network_after_calibration():
    table: Any = shaping_report.table(RECORD)
    assert list(table.columns) == shaping_report.COLUMNS
    assert table["network"].tolist() == ["price 0.3", "price 0.3 unshaped", *["channels by S"] * 2]
    assert table["S"].isna().tolist() == [True, True, False, False]
    assert table["conditional"].tolist() == [200] * 4
    # The line through the static networks has 80 % at 4e7, 85 at 5e7, and ends at 6e7.
    over = shaping_report.to_static(table, STATIC)
    np.testing.assert_allclose(over, [0.0, -6.0, -9.0, np.nan])


def test_how_far_the_share_is_from_what_was_asked_for():
    errors: Any = shaping_report.share_error(RECORD)
    assert errors["calibration"].tolist() == ["before", "after"]
    np.testing.assert_allclose(errors["points"], [4.0, 0.5])


def test_files_are_written(tmp_path, capsys):
    written = shaping_report.write(RECORD, tmp_path / "cpu.json", STATIC)
    assert [path.name for path in written] == ["cpu.json", "gates.csv", "gates.png"]
    assert len(pd.read_csv(tmp_path / "gates.csv")) == 4
    assert (tmp_path / "gates.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "-9.00" in printed and "4.00 points from S" in printed


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--data=digits", "--rows=bass"], "--rows names 'bass'; expected some of bas, channels"),
        (["--data=digits", "--seeds=x"], "--seeds is 'x'; expected whole numbers"),
        (["--data=digits", "--base=vgg"], "--base is 'vgg'; expected resnet20"),
        ([], "--data_dir is missing"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(flags, sentence):
    with pytest.raises(UserError) as error:
        shaping._groups(shaping.parse(["shaping.py", *flags]), float("inf"))
    assert sentence in str(error.value)


def test_with_and_without_shaping_differ_in_that_alone():
    values = shaping.parse(["shaping.py", "--data=digits"])
    asked = shaping.asked(values, 3)
    settings = {name: trained.settings_of(*of_one) for name, of_one in asked.items()}
    assert len(settings) == 2 * len(shaping.PRICES) + 4
    for price in shaping.PRICES:
        shaped, plain = settings[f"price {price:g}"], settings[f"price {price:g} unshaped"]
        assert [name for name in shaped if shaped[name] != plain[name]] == ["shaping.weight"]
    shaped, plain = settings["blocks by S shaped"], settings["blocks by S"]
    differing = {name for name in shaped if shaped[name] != plain[name]}
    assert differing == {"shaping.weight", "shaping.mean"}
    assert {held["joint.epochs"] for held in settings.values()} == {4}


@pytest.mark.slow
def test_the_comparison_on_the_digits(tmp_path):
    command = [
        sys.executable, str(ROOT / "benchmarks/shaping.py"), "--data=digits", "--base=resnet8",
        "--rows=bas,channels", "--epochs=1", f"--workdir={tmp_path}/runs",
        f"--output={tmp_path}/out",
    ]  # fmt: skip
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out/resnet8_digits").glob("*.json")
    record = json.loads(path.read_text())
    table: Any = shaping_report.table(record)
    one_cost, by_s = table[table["S"].isna()], table[table["S"].notna()]
    assert len(one_cost) == 2 * len(shaping.PRICES) and len(by_s) == len(shaping.SCALES)
    assert (table["always"] + table["never"] + table["conditional"] == table["gates"]).all()
    again = subprocess.run(command, capture_output=True, text=True, env=env)
    assert again.returncode == 0 and again.stdout.count("measured already") == 7
