import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import training, training_cases
from urnet_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ["--networks=resnet8", "--batch_size=4", "--repeats=2", "--torch=False"]

# Compiles in a fraction of the time; how long the steps take is of no account here.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
QUICK = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}


def run(folder: pathlib.Path, *arguments: str, tunables: str = ""):
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "training.py"), *arguments],
        cwd=folder,
        env=os.environ | QUICK | {"GLIBC_TUNABLES": tunables},
        capture_output=True,
        text=True,
    )


def read(folder: pathlib.Path) -> dict:
    (file,) = folder.glob("out/*.json")
    return json.loads(file.read_text())


@pytest.mark.slow
def test_measures_then_goes_on_and_then_has_nothing_left(tmp_path):
    # ---- The first command leaves the steps out ----
    stopped = run(tmp_path, *TINY, "--output=out", "--networks=")
    assert stopped.returncode == 0, stopped.stderr
    assert [row["kind"] for row in read(tmp_path)["rows"]] == ["input"]

    # ---- The second measures them alone ----
    went_on = run(tmp_path, *TINY, "--output=out")
    assert went_on.returncode == 0, went_on.stderr
    assert "input pipeline, batch 4: measured already" in went_on.stdout
    record = read(tmp_path)
    pipeline, plain, gated = record["rows"]
    assert (pipeline["dataset"], pipeline["image_shape"]) == ("digits", [8, 8, 1])
    assert pipeline["images_per_s"] > 0
    assert [row["step"] for row in (plain, gated)] == ["plain", "gated"]
    assert gated["parameters"] > plain["parameters"]
    assert gated["sigmoid_probability"] == 0.1
    assert plain["to_plain"] == 1
    assert gated["to_plain"] == pytest.approx(gated["median_ms"] / plain["median_ms"], rel=1e-4)
    for row in (plain, gated):
        assert row["p25_ms"] <= row["median_ms"] <= row["p75_ms"]
        assert row["images_per_s"] == pytest.approx(4000 / row["median_ms"], rel=1e-4)
        assert row["compile_s"] > 0
        assert record["runs"][row["run"]]["command"].endswith("--output=out")
    assert re.search(r"resnet8 +float32 +gated +4 ", went_on.stdout)

    # ---- Nothing left; under other settings everything is ----
    again = run(tmp_path, *TINY, "--output=out")
    assert again.stdout.count("measured already") == 2
    assert read(tmp_path)["rows"] == record["rows"]
    tunables = "glibc.malloc.hugetlb=1" if sys.platform == "linux" else ""
    other = run(
        tmp_path, *TINY, "--output=out", "--time_limit_s=0", "--repeats=3", tunables=tunables
    )
    assert "--time_limit_s is over before input pipeline, batch 4" in other.stdout
    assert read(tmp_path)["rows"] == record["rows"]
    if sys.platform == "linux":
        assert pipeline["huge_pages"] is plain["huge_pages"] is False
        assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 is not set" in again.stdout
        assert "GLIBC_TUNABLES" not in other.stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--networks=vgg16", "--networks names 'vgg16'; expected resnet and a depth"),
        ("--networks=resnet21", "model.depth is 21; a CIFAR ResNet has depth 6n[+]2"),
        ("--dtype=float16", "model.dtype is 'float16'; expected one of 'float32', 'bfloat16'."),
        ("--image_size=64", "model.depth is 8; an ImageNet ResNet has one"),
        ("--repeats=0", "repeats"),
        ("--network=resnet20", "Unknown command line flag 'network'"),
    ],
)
def test_unusable_flags(argument, message):
    with pytest.raises(UserError, match=message):
        training.parse(["training.py", *TINY, argument])


def test_nothing_to_time_is_refused():
    with pytest.raises(UserError, match="nothing to time"):
        training.parse(["training.py", "--networks=", "--input=False"])


def test_configs_are_those_of_the_experiments():
    short, long = (
        training_cases.make_config(f"resnet{depth}", "bfloat16", 64, gated=True)
        for depth in (20, 110)
    )
    assert (short.model.depth, long.model.depth) == (20, 110)
    assert short.joint.gate_optimizer == long.joint.gate_optimizer == "sgd"
    assert short.distill.weight == long.distill.weight == 0
    assert long.scale.draw == "step"
    for config in (short, long):
        assert config.gate.sigmoid_probability == 0.1
        assert (config.model.dtype, config.data.batch_size) == ("bfloat16", 64)


def test_other_images_have_the_networks_of_imagenet():
    config = training_cases.make_config("resnet18", "float32", 8, gated=False, image_size=64)
    assert (config.model.family, config.model.depth, config.data.image_size) == ("imagenet", 18, 64)
    values = training.parse(["training.py", "--networks=resnet18", "--image_size=64"])
    (_, (name, _, _)) = training._groups(values)
    assert name == "resnet18 at 64 px, batch 128, float32"
