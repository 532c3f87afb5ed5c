"""What HTTP costs, measured in short."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_each_part_in_short(measured, tmp_path):
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "benchmarks/serving_http.py"), f"--workdir={measured}",
            "--requests=20", "--rounds=2", "--seconds=0.2", "--connections=4",
            f"--output={tmp_path}",
        ],
        capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    latency, *rate = json.loads(path.read_text())["rows"]
    assert latency["whole_p50_ms"] > latency["engine_p50_ms"] > 0
    assert latency["http_p99_ms"] >= latency["http_p50_ms"] > 0
    names = ["a network that costs nothing", "hello, to the same requests", "hello"]
    assert [row["server"] for row in rate] == names
    assert all(row["per_s"] > 0 for row in rate)
