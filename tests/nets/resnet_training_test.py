"""What training starts from and follows: initial weights and gradients."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.resnet_reference import ARCHS, BATCH, filled, inputs, network, unstack
from helpers.variables import apply, split_gates
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.blocks import Stage
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.mode import Build, Mode
from urnet_jax.nets.residual import StageSpec
from urnet_jax.nets.tasks import Classification
from urnet_jax.train.state import join


def new_stage(arch: Architecture, spec: StageSpec, gate_bias: float = 0.0) -> Stage:
    return Stage(arch, spec, Build(gate_bias=gate_bias), rngs=nnx.Rngs(0))


def test_a_loop_has_the_gradient_of_the_unrolled_blocks():
    spec = StageSpec("basic", 3, 4, 8, 8, stride=2)
    arch = Architecture("cifar", 20, 5, image_size=8, width=4)
    abstract = nnx.eval_shape(lambda: new_stage(arch, spec))
    graph, params, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    params, stats = filled(params), filled(stats)
    x, scale = jnp.abs(inputs(ARCHS["B"])[0][..., :1]) * jnp.ones(4), inputs(arch)[1]

    def loss(params: Any, unroll: bool) -> jax.Array:
        stage = nnx.merge(graph, nnx.State(params), nnx.State(stats))
        drawn = GateInputs(scale, sigmoid=jnp.ones((BATCH, 3), bool))
        y, _, (gates, _) = stage(x, None, drawn, Mode(batch_norm="batch", unroll=unroll))
        return jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y) + jnp.sum(gates)

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    loop, unrolled = (unstack({"stage": grad(params, unroll)}) for unroll in (False, True))
    assert len(loop) == 3 * 10  # two convolutions, two norms and a gate
    for path, expected in unrolled.items():
        error = np.abs(loop[path] - expected).max()
        assert 0 < np.abs(expected).max() and error <= 1e-4 * np.abs(expected).max(), path


def test_the_task_loss_reaches_every_gate_through_its_sigmoid():
    arch = ARCHS["B"]
    graph, params, stats = network(arch)
    gates, backbone = split_gates(params)

    @jax.jit
    @jax.grad
    def gradient(gates: Any) -> jax.Array:
        always = jnp.ones((BATCH, arch.num_blocks), bool)
        logits, _, _ = apply(graph, join(gates, backbone), stats, *inputs(arch), sigmoid=always)
        return Classification().loss(logits, jnp.arange(BATCH) % 5).mean()

    biases = {
        path: float(value[0])
        for path, value in unstack(gradient(gates)).items()
        if path.endswith("gate/fc2/bias")
    }
    assert len(biases) == arch.num_blocks
    assert min(map(abs, biases.values())) > 1e-5


def test_initial_weights():
    arch = Architecture("cifar", 20, 10, image_size=8)
    spec = StageSpec("basic", 3, 8, 16, 16, stride=2)
    params = jax.jit(lambda: nnx.state(new_stage(arch, spec, gate_bias=0.7), nnx.Param))()
    kernels = []
    for path, value in nnx.to_flat_state(params):
        if path[-3:] == ("gate", "fc2", "bias"):
            np.testing.assert_array_equal(value[...], np.full(value.shape, 0.7, np.float32))
        elif path[-1] == "scale":
            np.testing.assert_array_equal(value[...], 1)
        elif path[-2] in ("conv1", "conv2"):
            kernels += list(value[...]) if path[0] == "body" else [value[...]]
    assert len(kernels) == 6
    for kernel in kernels:  # He et al. 2015, equation 14; 3x3 positions, 16 channels
        assert np.std(kernel) == pytest.approx(math.sqrt(2 / (9 * 16)), rel=0.1)
    for one, other in itertools.combinations(kernels, 2):
        if one.shape == other.shape:  # no block is a copy of another
            assert abs(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1]) < 0.1
