"""The long runs of a server, cut short."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_each_part_in_short(measured, tmp_path):
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "benchmarks/serving_soak.py"), f"--workdir={measured}",
            "--requests=300", "--stops=2", "--minutes=0.01", "--connections=4",
            f"--output={tmp_path}",
        ],
        capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    rows: Any = json.loads(path.read_text())["rows"]
    many, overload, *stops = rows
    assert (
        sum(many["statuses"].values()) == 300
        and many["statuses"]["200"] > 0
        and many["per_s"] > 0
        and many["rss_mb"][0] > 0
    )
    assert overload["others"] == {}
    assert overload["answered"] + overload["shed"] == overload["sent"] > 0
    assert len(stops) == 2 and all(row["answered"] == row["received"] > 0 for row in stops)
