"""All executions against `dense`, on networks of two stages: later ones are more of the same."""

import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.execution_networks import (
    ARCHS,
    QUICK,
    SPARSE,
    assert_same,
    each_execution,
    gates_of,
    images_of,
    network,
    run,
)
from helpers.variables import apply
from urnet_jax.evaluate import job
from urnet_jax.nets.mode import Execution

examples = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
each_case = pytest.mark.parametrize(
    ("name", "batch"),
    [("A", 1), ("A", 33), ("pool", 8), ("B", 40), ("external", 8), ("basic", 2), ("bottleneck", 7)],
)


@st.composite
def usage(draw: st.DrawFn, num_blocks: int, batch: int) -> list[int]:
    """How many of the batch run each block: few, many, none and all."""
    count = st.one_of(st.integers(0, batch), st.sampled_from([0, batch]))
    return draw(st.lists(count, min_size=num_blocks, max_size=num_blocks))


@each_case
def test_given_gates(name: str, batch: int):
    num_blocks = ARCHS[name].num_blocks

    @examples
    @given(usage(num_blocks, batch), st.booleans(), seeds)
    def check(counts: list[int], fractional: bool, seed: int) -> None:
        rng = np.random.default_rng(seed)
        gates = gates_of(counts, batch, rng)
        if fractional:
            gates *= 1 / (1 + np.exp(-rng.normal(0, 3, gates.shape).astype(np.float32)))
        inputs = images_of(name, batch, rng), rng.uniform(size=batch), gates
        expected, _ = run(name, "dense", *inputs)
        for how in SPARSE:
            logits, used = run(name, how, *inputs)
            assert_same(logits, expected)
            np.testing.assert_array_equal(used, gates)

    check()


@each_case
def test_own_gates_with_mixed_scales(name: str, batch: int):
    seen = []

    @examples
    @given(st.lists(st.floats(0, 1, width=32), min_size=batch, max_size=batch), seeds)
    def check(scale: list[float], seed: int) -> None:
        images = images_of(name, batch, np.random.default_rng(seed))
        expected, expected_gates = run(name, "dense", images, scale)
        seen.extend(expected_gates)
        for how in SPARSE:
            logits, gates = run(name, how, images, scale)
            np.testing.assert_array_equal(gates, expected_gates)
            assert_same(logits, expected)

    check()
    assert len(np.unique(seen, axis=0)) > 2


@each_execution
def test_a_sample_does_not_depend_on_its_batch_mates(how: Execution):
    name, batch = "A", 33

    @examples
    @given(st.integers(0, batch - 1), st.integers(0, batch - 1), seeds)
    def check(first: int, second: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        image, scale = images_of(name, 1, rng), rng.uniform()
        results = []
        for place in (first, second):
            images, scales = images_of(name, batch, rng), rng.uniform(size=batch)
            images[place], scales[place] = image[0], scale
            logits, gates = run(name, how, images, scales)
            results.append((logits[place], gates[place]))
        np.testing.assert_array_equal(results[0][1], results[1][1])
        assert_same(results[0][0], results[1][0])

    check()


@each_execution
def test_bfloat16(how: Execution):
    name, batch, rng = "A", 8, np.random.default_rng(0)
    images, scale = images_of(name, batch, rng), np.ones(batch)
    for counts in ([0, 1, 3, 4, 7, 8], [8] * 6, [0] * 6):
        gates = gates_of(counts, batch, rng)
        expected, _ = run(name, "dense", images, scale, gates, dtype="bfloat16")
        logits, used = run(name, how, images, scale, gates, dtype="bfloat16")
        np.testing.assert_array_equal(used, gates)
        assert logits.dtype == np.float32
        assert_same(logits, expected, 0.01)  # a bfloat16 rounds by up to 0.004


@pytest.mark.parametrize("how", ["dense", "auto", *SPARSE])
def test_no_images_have_no_results(how: Execution):
    """The loop of `pieces` once went on for ever over nothing, and the process died."""
    arch = ARCHS["A"]
    images, scale = jnp.zeros((0, arch.image_size, arch.image_size, 3)), jnp.zeros(0)
    logits, gates = run("A", how, images, scale)
    assert logits.shape == (0, arch.num_classes) and gates.shape == (0, arch.num_gates)


@pytest.mark.parametrize("how", SPARSE)
def test_training_is_dense(how: Execution):
    graph, params, stats = network("A")
    with pytest.raises(ValueError, match="set it to 'dense'"):
        apply(
            graph, params, stats, jnp.zeros((2, 9, 9, 3)), jnp.ones(2), train=True, execution=how
        )  # fmt: skip


def test_evaluation_is_the_same_with_any_execution(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    tables = []
    for how in ("dense", "auto"):
        output = tmp_path / how
        job.evaluate_workdir(tmp_path / "run", batch_size=4, execution=how, output=output)
        with np.load(output / "eval_samples.npz") as samples:
            gates, predictions = samples["gates"], samples["predictions"]
        tables.append((pd.read_csv(output / "eval.csv"), gates, predictions))
    (expected, *dense), (table, *sparse) = tables
    pd.testing.assert_frame_equal(table, expected, rtol=1e-5)
    for one, other in zip(sparse, dense, strict=True):
        np.testing.assert_array_equal(one, other)


@each_execution
@pytest.mark.parametrize("name", ["A", "external"])
def test_random_drop_and_block_attention(how: Execution, name: str):
    """Gates that are sigmoids and weigh what random drop leaves, and blocks that it drops alone."""
    batch, rng = 8, np.random.default_rng(0)
    graph, params, stats = network(name)
    images, scale = images_of(name, batch, rng), jnp.full(batch, 0.6)
    kept = jnp.asarray(gates_of([5] * ARCHS[name].num_blocks, batch, rng))

    def run_as(execution: Execution, gates: Any) -> Any:
        sigmoid = jnp.ones(kept.shape, bool)
        return apply(
            graph, params, stats, jnp.asarray(images), scale,
            kept=kept, sigmoid=sigmoid, gates=gates, execution=execution,
        )[:2]  # fmt: skip

    jitted = jax.jit(run_as, static_argnums=0, compiler_options=QUICK)
    for gates in (None, jnp.ones(kept.shape)):
        (expected, weights), (logits, used) = jitted("dense", gates), jitted(how, gates)
        assert_same(np.asarray(logits), np.asarray(expected))
        np.testing.assert_allclose(used, weights, rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(used) > 0, np.asarray(kept) > 0)
        fractional = (np.asarray(used) > 0) & (np.asarray(used) < 1)
        assert fractional.any() == (gates is None)
