"""Gathering the filters of open channels, against computing all and masking."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.execution_networks import QUICK
from helpers.resnet_reference import network
from helpers.variables import apply
from urnet_jax.nets import execution
from urnet_jax.nets.channels import filters
from urnet_jax.nets.channels.architecture import ChannelGated
from urnet_jax.nets.cost import sides
from urnet_jax.nets.mode import Execution, Mode

ROOT = pathlib.Path(__file__).resolve().parents[3]
SMALL = ChannelGated("cifar", 8, 5, image_size=8, width=12)  # 12, 24 and 48 gates of one channel
GROUPED = ChannelGated("cifar", 14, 5, image_size=8, width=4, gate_group=2)
BOTH = dataclasses.replace(GROUPED, gate_blocks=True)
LARGE = ChannelGated("imagenet", 50, 5, image_size=224, width=64, shortcut="B")


@functools.cache
def compiled(arch: ChannelGated, how: Execution, dtype: str = "float32") -> Any:
    graph, params, stats = network(arch, dtype)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(images: Any, gates: Any) -> Any:
        return apply(
            graph, params, stats, images, jnp.ones(len(images)), gates=gates, execution=how
        )[0]

    return run


def drawn(arch: ChannelGated, batch: int, usage: float) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    images = rng.normal(size=(batch, *sides(arch.image_size), 3)).astype(np.float32)
    return images, (rng.random((batch, arch.num_gates)) < usage).astype(np.float32)


def test_capacities_by_hand():
    assert filters.capacities(1) == (0, 1)
    assert filters.capacities(4) == (0, 1, 2, 3, 4)
    assert filters.capacities(8) == tuple(range(9))
    assert filters.capacities(12) == (0, 2, 3, 5, 6, 8, 9, 11, 12)
    assert filters.capacities(64) == tuple(range(0, 65, 8))


@pytest.mark.parametrize("arch", [SMALL, GROUPED, BOTH], ids=["single", "groups", "both"])
@pytest.mark.parametrize("usage", [0.1, 0.6, 1.0])
def test_single_channels_and_groups_equal_dense(arch, usage):
    images, gates = drawn(arch, 6, usage)
    gates[0] = 0
    dense, gathered = (compiled(arch, how)(images, gates) for how in ("dense", "filters"))
    np.testing.assert_allclose(gathered, dense, rtol=1e-5, atol=1e-5)


def test_every_number_of_open_channels_equals_dense():
    """Of one layer, so that every capacity is met, and each count below it."""
    images, gates = drawn(SMALL, 13, 1.0)
    for n in range(13):
        gates[n, :12] = np.random.default_rng(n).permutation(np.arange(12) < n)
    dense, gathered = (compiled(SMALL, how)(images, gates) for how in ("dense", "filters"))
    np.testing.assert_allclose(gathered, dense, rtol=1e-5, atol=1e-5)
    assert len(np.unique(np.asarray(dense)[:, 0])) == 13


def test_an_image_alone_has_the_logits_that_it_has_in_a_batch():
    images, gates = drawn(SMALL, 3, 0.5)
    together = compiled(SMALL, "filters")(images, gates)
    for n in range(3):
        alone = compiled(SMALL, "filters")(images[n : n + 1], gates[n : n + 1])
        np.testing.assert_allclose(alone[0], together[n], rtol=1e-5, atol=1e-5)


def test_gates_between_0_and_1_weigh_as_in_dense():
    images, gates = drawn(GROUPED, 4, 0.5)
    gates *= np.random.default_rng(4).random(gates.shape, np.float32)
    dense, gathered = (compiled(GROUPED, how)(images, gates) for how in ("dense", "filters"))
    np.testing.assert_allclose(gathered, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "platform", "batch", "expected"),
    [
        (GROUPED, "cpu", 8, "pieces"),
        (SMALL, "cpu", 8, "pieces"),
        (SMALL, "cpu", 1, "cond"),
        (ChannelGated("cifar", 20, 10, image_size=32, gate_group=16), "cpu", 128, "pieces"),
        (LARGE, "cpu", 8, "filters"),
        (LARGE, "cpu", 1, "filters"),
        (LARGE, "gpu", 8, "compact"),
        (LARGE, "tpu", 1, "cond"),
    ],
)
def test_auto(arch, platform, batch, expected):
    assert execution.choose(arch, Mode(execution="auto"), batch, platform).execution == expected


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from ml_collections import ConfigDict

from urnet_jax import config as config_lib
from urnet_jax.evaluate.step import make_eval_step
from urnet_jax.nets import network

shipped, config = config_lib.load("cifar10_resnet20_bas:resizable"), config_lib.load("digits")
with config.unlocked():
    fields = {"depth": 8, "width": 8, "gate_group": 2, "gate_prior": 0.0}
    config.model = ConfigDict(shipped.model.to_dict() | fields)
params, stats = network.init_variables(*config_lib.network(config), config.seed)
for n in (1, 2, 3):  # gates that look at the image
    last = params[f"stage{n}"]["entry"]["gate"]["fc2"]
    last["kernel"] = np.random.default_rng(n).normal(size=last["kernel"].shape).astype("f")
rng = np.random.default_rng(0)
batch = (rng.integers(0, 256, (16, 8, 8, 1), np.uint8), rng.integers(0, 10, 16),
         np.linspace(0, 1, 16, dtype=np.float32), np.arange(16, dtype=np.int32))
mesh = Mesh(jax.devices(), "data")
same, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
placed = (*jax.device_put((params, stats), same), *jax.device_put(batch, split))
found = make_eval_step(config, execution="filters", mesh=mesh)(*placed)
alone = make_eval_step(config, execution="dense")(params, stats, *batch)
assert len(jax.devices()) == 4
gates = np.asarray(alone["gates"])
assert 0.1 < gates.mean() < 0.9 and len(np.unique(gates, axis=0)) > 8
for name in ("prediction", "correct", "gates"):
    np.testing.assert_array_equal(found[name], alone[name])
np.testing.assert_allclose(found["loss"], alone["loss"], rtol=1e-5, atol=1e-5)
"""


def test_each_device_gathers_for_its_own_images(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHARDED], cwd=tmp_path, capture_output=True,
        text=True, timeout=300,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_bfloat16_equals_dense_to_its_rounding():
    images, gates = drawn(GROUPED, 6, 0.6)
    dense, gathered = (
        np.asarray(compiled(GROUPED, how, "bfloat16")(images, gates), np.float32)
        for how in ("dense", "filters")
    )
    exact = np.asarray(compiled(GROUPED, "dense")(images, gates))
    # Seven blocks, each of some roundings of 2^-9.
    for found in (dense, gathered):
        assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
    assert np.abs(gathered - dense).max() < 0.1 * np.abs(exact).max()
