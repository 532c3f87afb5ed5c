"""What skips a block does not enter it, and is carried past it as it is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.execution_networks import (
    ARCHS,
    QUICK,
    assert_same,
    each_execution,
    gates_of,
    images_of,
    network,
    run,
)
from urnet_jax.nets import execution
from urnet_jax.nets.blocks import Block
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.layers import pool
from urnet_jax.nets.mode import Build, Execution, Mode


def with_block(params: Any, stage: str, block: int, change: Any) -> Any:
    """The params with one block's own (not its shortcut's or gate's) changed."""
    part = "entry" if block == 0 else "body"

    def visit(path: tuple, leaf: jax.Array) -> jax.Array:
        keys = [key.key for key in path]
        if keys[:2] != [stage, part] or not keys[2].startswith(("conv", "bn")):
            return leaf
        return change(leaf) if block == 0 else leaf.at[block - 1].set(change(leaf[block - 1]))

    return jax.tree_util.tree_map_with_path(visit, params)


@each_execution
@pytest.mark.parametrize(("stage", "block"), [("stage1", 0), ("stage1", 2), ("stage2", 0)])
def test_a_block_that_all_skip_is_not_run(how: Execution, stage: str, block: int):
    name, batch, rng = "A", 33, np.random.default_rng(0)
    params = network(name)[1]
    poisoned = with_block(params, stage, block, lambda leaf: jnp.full_like(leaf, jnp.nan))
    inputs = images_of(name, batch, rng), rng.uniform(size=batch)
    gates = gates_of([20] * 6, batch, rng)
    gates[:, (0 if stage == "stage1" else 3) + block] = 0
    expected, _ = run(name, "dense", *inputs, gates)
    assert np.isnan(run(name, "dense", *inputs, gates, poisoned)[0]).all()
    assert_same(run(name, how, *inputs, gates, poisoned)[0], expected)


@pytest.mark.parametrize(
    ("how", "counts"),
    # Of other counts, `compact` fills its capacity with samples that skip.
    [("pieces", range(34)), ("compact", [0, *execution.capacities(33)])],
)
@pytest.mark.parametrize(("stage", "block"), [("stage1", 1), ("stage2", 0)])
def test_samples_that_skip_a_block_never_enter_it(
    how: Execution, counts: Any, stage: str, block: int
):
    name, batch, rng = "A", 33, np.random.default_rng(0)
    params = network(name)[1]
    # F of an image this bright overflows, and 0 x inf is nan.
    steep = with_block(params, stage, block, lambda leaf: leaf * 1e5)
    n = (0 if stage == "stage1" else 3) + block
    scale = np.ones(batch)
    for count in counts:
        gates = np.zeros((batch, 6), np.float32)
        gates[:, n] = gates_of([count], batch, rng)[:, 0]
        skip = gates[:, n] == 0
        images = images_of(name, batch, rng)
        images[skip] *= 1e30
        expected, _ = run(name, "dense", images, scale, np.zeros_like(gates))
        assert np.isnan(run(name, "dense", images, scale, gates, steep)[0][skip]).all()
        logits, _ = run(name, how, images, scale, gates, steep)
        if skip.any():
            assert_same(logits[skip], expected[skip])
        assert np.isfinite(logits).all()


@each_execution
@pytest.mark.parametrize("entry", [True, False])
def test_the_means_that_are_carried_are_those_of_the_features(how: Any, entry: bool):
    arch, batch = ARCHS["pool"], 8
    abstract = nnx.eval_shape(
        lambda: Block(arch, arch.stages[1], Build(), entry=entry, rngs=nnx.Rngs(0))
    )
    graph = nnx.split(abstract)[0]
    variables = [tree["stage2"]["entry" if entry else "body"] for tree in network("pool")[1:]]
    if not entry:
        variables = jax.tree.map(lambda leaf: leaf[0], variables)
    rng = np.random.default_rng(0)
    x = nnx.relu(jnp.asarray(rng.normal(size=(batch, 8, 8, 4 if entry else 8)), jnp.float32))

    def both(variables: Any, x: jax.Array, gates: jax.Array) -> Any:
        block = nnx.merge(graph, *map(nnx.State, variables))
        dense, _, _ = execution.run_gated(
            block, x, None, GateInputs(gates[:, 0], given=gates), Mode()
        )
        return dense, execution.run_unit(block, x, pool(x), gates, how)

    jitted = jax.jit(both, compiler_options=QUICK)
    for count in (0, 1, 5, batch):
        gates = gates_of([count], batch, rng)
        expected, (features, means) = jitted(variables, x, gates)
        assert_same(np.asarray(features), np.asarray(expected))
        assert_same(np.asarray(means), np.asarray(pool(expected)), 1e-6)
