"""The benchmarks of the loop, the input and the slices: that they run and count right."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import crash, inference, loop, paper, scaling, training
from benchmarks import input as input_benchmark
from urnet_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
TFDS = ROOT.parent / "shared" / "data" / "tfds"


def run(name, folder, *arguments, timeout=240):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", *arguments],
        cwd=folder, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("runs/benchmarks/*/*.json")
    return done.stdout, json.loads(file.read_text())["rows"]


@pytest.mark.slow
def test_the_loop_and_its_step(tmp_path):
    printed, (row,) = run("loop", tmp_path, "--rounds=2", "--segment_s=0.2")
    assert (row["dataset"], row["batch_size"], row["rounds"]) == ("digits", 64, 2)
    assert row["p25"] <= row["loop_to_step"] <= row["p75"]
    assert 0.2 < row["loop_ms"] / row["step_ms"] < 5
    assert "digits" in printed


@pytest.mark.slow
@pytest.mark.skipif(not (TFDS / "imagenet2012").is_dir(), reason="no prepared imagenet2012")
def test_the_input(tmp_path):
    printed, rows = run(
        "input", tmp_path, f"--data_dir={TFDS}", "--repeats=1", "--torch=False", "--image_size=32",
        "--rates=77",
    )  # fmt: skip
    names = [row["transform"].split(",")[0] for row in rows]
    assert names == ["urnet_jax", "PIL", "urnet_jax", "urnet_jax", "PIL"]
    assert all(row["images_per_s_per_core"] > 0 for row in rows)
    assert rows[1]["to_pil"] == rows[4]["to_pil"] == 1
    assert "77/s" in printed


@pytest.mark.slow
def test_a_slice(tmp_path):
    pytest.importorskip("libtpu")
    printed, (row,) = run(
        "scaling", tmp_path, "--config=cifar10_resnet20", "--topologies=v5e:2x2", "--images=4",
        timeout=500,
    )  # fmt: skip
    assert row["macs"] == pytest.approx(row["analytic_macs"], rel=0.05)
    assert row["batch_size"] == 16 and row["memory"] > 0
    assert "1024 v5p" in printed and "predicted, not measured" in printed
    assert list(tmp_path.glob("runs/benchmarks/scaling/*.png"))


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (loop, ["--rounds=1"], "rounds"),
        (input_benchmark, [], "--data_dir is missing"),
        (input_benchmark, ["--data_dir=x", "--torch=False", "--rates=fast"], "--rates is 'fast'"),
        (scaling, ["--config=nothing"], "nothing"),
        (scaling, ["--dtype=float16"], "model.dtype is 'float16'"),
    ],
)
def test_unusable_flags(benchmark, arguments, message):
    with pytest.raises(UserError, match=message):
        benchmark.parse(["benchmark.py", *arguments])


@pytest.mark.parametrize(
    "benchmark", [crash, inference, input_benchmark, loop, paper, scaling, training]
)
def test_a_trial_does_not_replace_the_record(benchmark):
    needed = ["--data_dir=x", "--torch=False"] if benchmark is input_benchmark else []
    values = benchmark.parse(["benchmark.py", *needed])
    name = benchmark.__name__.rpartition(".")[2]
    assert values.output == f"runs/benchmarks/{name}"
    assert f"results/{name}" in benchmark.__doc__
