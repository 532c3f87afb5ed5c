"""All executions against `dense`, on networks of two stages: later ones are more of the same."""

import collections
import dataclasses
import functools
import math
import shutil
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from urnet_jax import execution, report, state
from urnet_jax.architecture import EXECUTIONS, Architecture, Execution
from urnet_jax.blocks import Block, GateInputs
from urnet_jax.gates import pool
from urnet_jax.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class TwoStages(Architecture):
    @property
    def stages(self) -> Any:
        return super().stages[:2]


ARCHS = {
    "A": TwoStages("cifar", 20, 5, image_size=9, width=4),  # 9 and 5 px: odd
    "pool": TwoStages("cifar", 14, 5, image_size=8, width=4, shortcut="pool"),
    "B": TwoStages("cifar", 14, 5, image_size=8, width=4, shortcut="B"),
    "external": TwoStages("cifar", 14, 5, image_size=8, width=4, gate_network="external"),
    "basic": TwoStages("imagenet", 18, 5, image_size=16, width=4, shortcut="B"),
    "bottleneck": TwoStages("imagenet", 50, 5, image_size=16, width=4, shortcut="B"),
}
SPARSE: tuple[Execution, ...] = ("cond", "compact", "pieces")
TOLERANCE = 1e-5

# Every piece and every capacity of every block is a program of its own: optimised, they would
# compile five times as long.
QUICK: Any = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

examples = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
each_execution = pytest.mark.parametrize("how", SPARSE)
each_case = pytest.mark.parametrize(
    ("name", "batch"),
    [("A", 1), ("A", 33), ("pool", 8), ("B", 40), ("external", 8), ("basic", 2), ("bottleneck", 7)],
)

traces = collections.Counter()


@functools.cache
def network(name: str, dtype: str = "float32") -> tuple[Any, Any, Any]:
    """Graph, params and batch_stats. Norms are not trivial; gates open for S of about 0.5 or more.

    At which S exactly, the features decide: so blocks differ in the samples that they run.
    """
    abstract = nnx.eval_shape(lambda: ResNet(ARCHS[name], dtype=dtype, rngs=nnx.Rngs(0)))
    graph, params, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    rng = np.random.default_rng(7)

    def fill(path: tuple, leaf: Any) -> jax.Array:
        layer, kind, size = path[-2].key, path[-1].key, leaf.shape
        if (layer, kind) == ("fc1", "kernel"):  # [..., 2C, hidden]: features, then S
            values = rng.normal(0, 0.2, size)
            values[..., size[-2] // 2 :, :] = 2 / size[-2]
        elif layer == "of_scale":
            values = np.ones(size)
        elif layer == "fc2":
            # External gates differ in nothing else.
            bias = -0.5 if size[-1] == 1 else np.linspace(-0.9, -0.1, size[-1])
            values = (
                np.full(size, 1 / size[-2]) if kind == "kernel" else np.broadcast_to(bias, size)
            )
        elif kind == "kernel":
            values = rng.normal(size=size) * math.sqrt(2 / math.prod(size[-4:-1]))
        elif kind in ("scale", "var"):
            values = rng.uniform(*{"scale": (0.3, 0.9), "var": (0.7, 1.5)}[kind], size)
        else:
            values = rng.normal(0, 0.1, size)
        return jnp.asarray(values, jnp.float32)

    filled = [
        jax.tree_util.tree_map_with_path(fill, nnx.to_pure_dict(tree)) for tree in (params, stats)
    ]
    return graph, *filled


@functools.cache
def compiled(name: str, how: Execution, dtype: str = "float32") -> Any:
    """f(params, batch_stats, images, scale, gates) -> logits, gates."""
    graph = network(name, dtype)[0]

    def run(params: Any, stats: Any, images: Any, scale: Any, gates: Any) -> Any:
        traces[name, how, dtype, len(images), gates is None] += 1
        return state.apply(graph, params, stats, images, scale, gates=gates, execution=how)[:2]

    return jax.jit(run, compiler_options=QUICK)


def run(
    name: str, how: Execution, images: Any, scale: Any, gates: Any = None, params: Any = None,
    dtype: str = "float32",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Logits and gates; None stands for the network's own gates and params."""
    _, own, stats = network(name, dtype)
    arguments = images, jnp.asarray(scale, jnp.float32), gates
    logits, gates = compiled(name, how, dtype)(params or own, stats, *arguments)
    return np.asarray(logits), np.asarray(gates)


def images_of(name: str, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Faint and bright images, whose gates differ."""
    arch = ARCHS[name]
    shape = batch, arch.image_size, arch.image_size, arch.image_channels
    return (rng.normal(size=shape) * rng.uniform(0.1, 3, (batch, 1, 1, 1))).astype(np.float32)


def assert_same(actual: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert np.isfinite(actual).all() and np.isfinite(expected).all()
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@st.composite
def usage(draw: st.DrawFn, num_blocks: int, batch: int) -> list[int]:
    """How many of the batch run each block: few, many, none and all."""
    count = st.one_of(st.integers(0, batch), st.sampled_from([0, batch]))
    return draw(st.lists(count, min_size=num_blocks, max_size=num_blocks))


def gates_of(counts: list[int], batch: int, rng: np.random.Generator) -> np.ndarray:
    """Hard gates [B, N]; a block's samples are drawn at random."""
    ranks = rng.permuted(np.tile(np.arange(batch), (len(counts), 1)), axis=1)
    return (ranks < np.array(counts)[:, None]).T.astype(np.float32)


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
def test_one_program_serves_all_scales_gates_and_inputs(how: Execution):
    name, batch = "pool", 8
    rng = np.random.default_rng(0)
    given_gates = [None] + [gates_of([count] * 4, batch, rng) for count in (0, 3, batch)]
    for gates in given_gates:
        for scale in (np.zeros(batch), np.ones(batch), rng.uniform(size=batch)):
            run(name, how, images_of(name, batch, rng), scale, gates)
    assert traces[name, how, "float32", batch, True] == 1
    assert traces[name, how, "float32", batch, False] == 1

    arguments = *network(name)[1:], images_of(name, batch, rng), jnp.zeros(batch)
    program = compiled(name, how).lower(*arguments, given_gates[0]).compile()
    for scale in (jnp.zeros(batch), jnp.ones(batch)):
        logits, gates = program(*arguments[:3], scale, None)
        expected, expected_gates = run(name, "dense", arguments[2], scale)
        np.testing.assert_array_equal(gates, expected_gates)
        assert_same(np.asarray(logits), expected)


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
    settings: Any = {"entry": entry, "dtype": jnp.dtype("float32"), "gate_bias": 0.0}
    abstract = nnx.eval_shape(lambda: Block(arch, arch.stages[1], **settings, rngs=nnx.Rngs(0)))
    graph = nnx.split(abstract)[0]
    variables = [tree["stage2"]["entry" if entry else "body"] for tree in network("pool")[1:]]
    if not entry:
        variables = jax.tree.map(lambda leaf: leaf[0], variables)
    rng = np.random.default_rng(0)
    x = nnx.relu(jnp.asarray(rng.normal(size=(batch, 8, 8, 4 if entry else 8)), jnp.float32))

    def both(variables: Any, x: jax.Array, gate: jax.Array) -> Any:
        block = nnx.merge(graph, *map(nnx.State, variables))
        given = GateInputs(gate > 0, None, gate, None)
        settings: Any = {"train": False, "straight_through": False, "execution": "dense"}
        dense = block(x, None, gate, given, **settings)[0]
        return dense, execution.run_block(block, x, pool(x), gate, how)

    jitted = jax.jit(both, compiler_options=QUICK)
    for count in (0, 1, 5, batch):
        gate = gates_of([count], batch, rng)[:, 0]
        expected, (features, means) = jitted(variables, x, gate)
        assert_same(np.asarray(features), np.asarray(expected))
        assert_same(np.asarray(means), np.asarray(pool(expected)), 1e-6)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 300), st.data())
def test_pieces_add_up_to_any_count(batch: int, data: st.DataObject):
    sizes = execution.piece_sizes(batch)
    assert sizes[0] == batch and sizes[-1] == 1
    assert list(sizes) == sorted(set(sizes), reverse=True)
    count = left = data.draw(st.integers(0, batch))
    used = []
    for size in sizes:
        used += [size] * (left // size)
        left %= size
    assert sum(used) == count
    assert len(used) <= count // max(execution.PIECES) + 5


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 300), st.data())
def test_the_smallest_capacity_that_holds_a_count_is_close(batch: int, data: st.DataObject):
    sizes = execution.capacities(batch)
    assert sizes[0] >= 1 and sizes[-1] == batch and len(sizes) <= execution.NUM_CAPACITIES
    assert list(sizes) == sorted(set(sizes))
    count = data.draw(st.integers(1, batch))
    assert min(size for size in sizes if size >= count) - count <= batch / execution.NUM_CAPACITIES


@pytest.mark.parametrize(
    ("platform", "batch", "expected"),
    [
        ("cpu", 1, "cond"),
        ("gpu", 1, "cond"),
        ("cpu", 2, "pieces"),
        ("cpu", 1000, "pieces"),
        ("gpu", 2, "compact"),
        ("tpu", 1000, "compact"),
    ],
)
def test_auto(platform: str, batch: int, expected: str):
    assert execution.choose("auto", batch, platform) == expected
    for how in get_args(Execution)[1:]:
        assert execution.choose(how, batch, platform) == how


def lowered(arch: Architecture, how: Execution, batch: int) -> str:
    abstract = nnx.eval_shape(lambda: ResNet(arch, rngs=nnx.Rngs(0)))
    graph, params, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    shapes: Any = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (
        (batch, arch.image_size, arch.image_size, 3), (batch,)
    )]  # fmt: skip

    def run(params: Any, stats: Any, images: Any, scale: Any) -> Any:
        return state.apply(graph, params, stats, images, scale, execution=how)[:2]

    trees = nnx.to_pure_dict(params), nnx.to_pure_dict(stats)
    return jax.jit(run).lower(*trees, *shapes).as_text()


@pytest.mark.parametrize("batch", [1, 4])
def test_auto_is_the_program_that_it_stands_for(batch: int):
    expected = execution.choose("auto", batch)
    assert lowered(ARCHS["A"], "auto", batch) == lowered(ARCHS["A"], expected, batch)


@each_execution
def test_the_program_does_not_grow_with_depth(how: Execution):
    shallow, deep = (
        lowered(Architecture("cifar", depth, 10, image_size=8), how, 4).count(
            "stablehlo.convolution"
        )
        for depth in (20, 110)
    )
    assert 0 < shallow == deep


def test_pieces_leave_all_convolutions_but_the_stem_in_their_loops():
    """XLA computes what does not change in a loop before it, needed or not."""
    name, batch = "A", 8
    graph, params, stats = network(name)
    gates = jnp.zeros((batch, 6))

    def forward(params: Any, stats: Any, images: Any) -> Any:
        inputs = images, jnp.zeros(batch)
        return state.apply(graph, params, stats, *inputs, gates=gates, execution="pieces")[0]

    images = jnp.zeros((batch, 9, 9, 3))
    text = str(jax.jit(forward).lower(params, stats, images).compile().as_text())
    outside = text[text.index("\nENTRY ") :]
    assert " convolution(" in text[: text.index("\nENTRY ")]
    assert outside.count(" convolution(") == 1


def test_an_unknown_execution_is_an_error_that_names_the_known_ones():
    message = f"execution is 'sparse'; expected one of {', '.join(EXECUTIONS)}"
    unknown: Any = "sparse"
    with pytest.raises(ValueError, match=message):
        execution.choose(unknown, 8)
    with pytest.raises(ValueError, match=message):
        lowered(ARCHS["A"], unknown, 8)


@pytest.mark.parametrize("how", SPARSE)
def test_training_is_dense(how: Execution):
    graph, params, stats = network("A")
    with pytest.raises(ValueError, match="in training, which needs 'dense'"):
        state.apply(
            graph, params, stats, jnp.zeros((2, 9, 9, 3)), jnp.ones(2), train=True, execution=how
        )  # fmt: skip


def test_evaluate_refuses_an_unknown_execution(start, tmp_path):
    with start("evaluate.py", "--workdir=run", "--execution=nonsense", cwd=tmp_path) as process:
        printed, errors = process.communicate(timeout=60)
    known = "|".join(EXECUTIONS)
    expected = f"error: --execution is 'nonsense'; value should be one of <{known}>.\n"
    assert (process.returncode, printed, errors) == (2, "", expected)


def test_evaluation_is_the_same_with_any_execution(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    tables = []
    for how in ("dense", "auto"):
        output = tmp_path / how
        report.evaluate_workdir(tmp_path / "run", batch_size=4, execution=how, output=output)
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
        use_sigmoid = jnp.ones(kept.shape, bool)
        return state.apply(
            graph, params, stats, jnp.asarray(images), scale,
            kept=kept, use_sigmoid=use_sigmoid, gates=gates, execution=execution,
        )[:2]  # fmt: skip

    jitted = jax.jit(run_as, static_argnums=0, compiler_options=QUICK)
    for gates in (None, jnp.ones(kept.shape)):
        (expected, weights), (logits, used) = jitted("dense", gates), jitted(how, gates)
        assert_same(np.asarray(logits), np.asarray(expected))
        np.testing.assert_allclose(used, weights, rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(used) > 0, np.asarray(kept) > 0)
        fractional = (np.asarray(used) > 0) & (np.asarray(used) < 1)
        assert fractional.any() == (gates is None)
