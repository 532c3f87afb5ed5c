"""Networks for dense prediction: their heads by hand, and every execution against dense."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.execution_networks import QUICK, each_execution
from helpers.resnet_reference import network
from helpers.variables import apply
from urnet_jax.nets import network as network_lib
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.dense import head
from urnet_jax.nets.dense.architecture import ChannelSegmenter, Segmenter
from urnet_jax.nets.mode import Build, Execution, Mode

SIZE, BATCH = (33, 48), 5
ARCHS: dict[str, Any] = {
    "blocks": Segmenter("imagenet", 18, 5, SIZE, width=8, shortcut="B"),
    "channels": ChannelSegmenter("imagenet", 18, 5, SIZE, width=8, shortcut="B", gate_group=4),
    "both": ChannelSegmenter(
        "imagenet", 18, 5, SIZE, width=8, shortcut="B", gate_group=4, gate_blocks=True
    ),
}


def images(batch: int = BATCH, size: tuple[int, int] = SIZE) -> Any:
    return jax.random.normal(jax.random.key(1), (batch, *size, 3))


@pytest.mark.parametrize(("height", "width", "cells"), [(6, 8, 1), (6, 8, 3), (7, 5, 3), (4, 9, 6)])
def test_pooling_to_a_grid_by_hand(height, width, cells):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    expected = np.empty((2, cells, cells, 3), np.float32)
    for i in range(cells):
        for j in range(cells):
            rows = slice(i * height // cells, -(-(i + 1) * height // cells))
            columns = slice(j * width // cells, -(-(j + 1) * width // cells))
            expected[:, i, j] = x[:, rows, columns].mean(axis=(1, 2))
    np.testing.assert_allclose(head.pool_to_grid(jnp.asarray(x), cells), expected, atol=1e-6)


def test_resizing_by_hand():
    """Pixels are areas: from two to four the values lie at -1/4, 1/4, 3/4 and 5/4."""
    x = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(head.resize(x, (2, 4))[0, :, :, 0], [[0, 1, 3, 4]] * 2, atol=1e-6)


def test_a_prediction_is_of_every_pixel_of_images_of_any_size():
    graph, params, stats = network(ARCHS["blocks"])
    for size in (SIZE, (40, 33)):
        prediction, gates, _ = apply(graph, params, stats, images(2, size), jnp.ones(2))
        assert prediction.shape == (2, *size, 5) and prediction.dtype == jnp.float32
        assert gates.shape == (2, 8)


def test_the_auxiliary_head_speaks_in_training_alone():
    arch = ARCHS["blocks"]
    variables = network_lib.init_variables(arch, Build(), 0)
    given = GateInputs(jnp.ones(BATCH), given=jnp.ones((BATCH, arch.num_gates)))

    def run(arch: Any, mode: Mode) -> Any:
        graph = network_lib.graph(arch, Build())
        return network_lib.apply(graph, *variables, images(), given, mode)[0]

    training = run(arch, Mode(batch_norm="batch", unroll=True))
    assert training.auxiliary.shape == training.prediction.shape
    assert run(arch, Mode()).auxiliary is None
    without = dataclasses.replace(arch, auxiliary_weight=0.0)
    params, _ = network_lib.init_variables(without, Build(), 0)
    assert "auxiliary" in variables[0] and "auxiliary" not in params


@each_execution
@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("name", ARCHS)
def test_every_execution_equals_dense(name, batch, how: Execution):
    arch = ARCHS[name]
    rng = np.random.default_rng(1)
    given = jnp.asarray(rng.integers(0, 2, (batch, arch.num_gates)), jnp.float32)
    graph, params, stats = network(arch)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
    def run(execution: Execution) -> Any:
        scale = jnp.linspace(0.3, 1, batch)
        return apply(graph, params, stats, images(batch), scale, gates=given, execution=execution)[
            :2
        ]

    dense, other = run("dense"), run(how)
    np.testing.assert_allclose(other[0], dense[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(other[1], dense[1])
