"""What the compiled steps take; on TPU slices where libtpu is installed."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from urnet_jax import config as config_lib
from urnet_jax.errors import UserError
from urnet_jax.phases import PHASES
from urnet_jax.train import aot
from urnet_jax.xla import compiled, program, sharding

ROOT = pathlib.Path(__file__).resolve().parents[2]
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


def small(**fields):
    config = config_lib.load("cifar10_resnet20")
    config.update_from_flattened_dict({"model.depth": 14, "data.batch_size": 8} | fields)
    return config


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "urnet_jax", "aot", *arguments],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["loop", "unroll", "external"])
def test_a_training_step_computes_what_the_architecture_says(phase, kind):
    external = {"model.gate_network": kind, "model.gate_norm": False, "distill.weight": 0.0}
    config = small(**external if kind == "external" else {"model.scan": kind})
    step = aot.compile_train(config, sharding.make_mesh(), phase)
    assert step.macs == pytest.approx(step.analytic_macs, rel=0.01)
    assert step.arguments_bytes > 0 and step.temporaries_bytes > 0
    assert step.collectives == {}


@pytest.mark.slow
def test_parts_of_a_batch_take_less_memory_and_as_many_flops():
    whole, parts = (
        aot.compile_train(
            small(**{"data.batch_size": 64, "accumulate_steps": n, "model.scan": "loop"}),
            sharding.make_mesh(),
        )
        for n in (1, 4)
    )
    assert parts.macs == pytest.approx(whole.macs, rel=0.01)
    assert parts.temporaries_bytes < 0.5 * whole.temporaries_bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--topology is missing"),
        (["--topology=v5e:2x2", "--phase=all"], "--phase is 'all'; value should be one of"),
        (["--topology=v5e:2x2", "--config.model.dept=8"], "the nearest known one is model.depth"),
        (["--topology=v5e:2x2", "--num_slices=0"], "--num_slices is '0'; expected"),
    ],
)
def test_unusable_flags(arguments, message):
    done = run("--config=cifar10_resnet20", *arguments)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_without_its_compiler_it_says_what_to_install():
    done = run("--config=cifar10_resnet20", "--topology=v5e:2x2")
    assert done.returncode == 2
    assert "pip install '.[tpu]'" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_tpu_slice():
    pytest.importorskip("libtpu")
    done = run(
        "--config=cifar10_resnet20", "--topology=v5e:2x2", "--config.model.depth=8",
        "--config.data.batch_size=64", "--config.eval.batch_size=62",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "v5e:2x2: 4 devices, TPU v5 lite" in done.stdout
    rows = {
        line[:26].strip(): line[26:].split() for line in done.stdout.splitlines() if line.strip()
    }
    assert rows["images (of all devices)"] == ["16", "(64)", "16", "(64)"]
    for share in rows["of the analytic count, %"]:
        assert float(share) == pytest.approx(100, abs=5)
    assert float(rows["arguments, MiB"][0]) > 0
    # Each BatchNorm of the step sums over the devices, forwards and backwards.
    times = int(rows["all-reduce, times: MiB"][0].rstrip(":"))
    assert times >= 2 * 7


@pytest.mark.slow
def test_the_largest_batch_for_a_tpu_slice():
    pytest.importorskip("libtpu")
    compiled.without_tpu()
    mesh = compiled.topology_mesh("v5e:2x2")
    with pytest.raises(UserError, match="--topology is 'v5e:3x3', which the TPU compiler"):
        compiled.topology_mesh("v5e:3x3")
    config = small(**{"model.depth": 8, "data.image_size": 224, "data.batch_size": 4 * 400})
    tried = []
    found = aot.largest_batch(config, mesh, "pretrain", lambda *told: tried.append(told))
    assert config.data.batch_size == 4 * 400
    assert found > 0 and found % 4 == 0
    assert (found, True) in tried and (found + 4, False) in tried


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is XLA:CPU that has naive loops")
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        # Bodies of one block, which XLA:CPU must not see in a loop.
        ("cifar10_resnet20", {"model.depth": 14}),
        # Likewise, and its last maps, 2x2, are smaller than the kernels.
        ("imagenet_resnet101", {"model.depth": 18, "data.image_size": 64}),
    ],
)
def test_no_convolution_of_an_unrolled_step_runs_in_naive_loops(name, fields):
    config = config_lib.load(name)
    config.update_from_flattened_dict({"data.batch_size": 8} | fields)
    step, arguments = aot.train_step(config, sharding.make_mesh(), "joint")
    text = str(step.lower(*arguments).compile().as_text())
    assert " convolution(" in text
    assert program.naive_convolutions(text) == []
