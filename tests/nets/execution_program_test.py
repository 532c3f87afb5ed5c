"""The program of an execution: its sizes, what `auto` stands for, and what is compiled into it."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.execution_networks import (
    ARCHS,
    assert_same,
    compiled,
    each_execution,
    gates_of,
    images_of,
    network,
    run,
    traces,
)
from helpers.variables import apply
from urnet_jax.nets import execution
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.mode import EXECUTIONS, Execution, Mode
from urnet_jax.nets.resnet import ResNet


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
    arch = ARCHS["A"]
    assert execution.choose(arch, Mode(execution="auto"), batch, platform).execution == expected
    for how in get_args(Execution)[1:]:
        mode = Mode(execution=how)
        assert execution.choose(arch, mode, batch, platform) == mode


def lowered(arch: Architecture, how: Execution, batch: int) -> str:
    abstract = nnx.eval_shape(lambda: ResNet(arch, rngs=nnx.Rngs(0)))
    graph, params, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    shapes: Any = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (
        (batch, arch.image_size, arch.image_size, 3), (batch,)
    )]  # fmt: skip

    def run(params: Any, stats: Any, images: Any, scale: Any) -> Any:
        return apply(graph, params, stats, images, scale, execution=how)[:2]

    trees = nnx.to_pure_dict(params), nnx.to_pure_dict(stats)
    return jax.jit(run).lower(*trees, *shapes).as_text()


@pytest.mark.parametrize("batch", [1, 4])
def test_auto_is_the_program_that_it_stands_for(batch: int):
    expected = execution.choose(ARCHS["A"], Mode(execution="auto"), batch).execution
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
        return apply(graph, params, stats, *inputs, gates=gates, execution="pieces")[0]

    images = jnp.zeros((batch, 9, 9, 3))
    text = str(jax.jit(forward).lower(params, stats, images).compile().as_text())
    outside = text[text.index("\nENTRY ") :]
    assert " convolution(" in text[: text.index("\nENTRY ")]
    assert outside.count(" convolution(") == 1


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_execution_is_an_error_that_names_the_known_ones():
    message = f"execution is 'sparse'; expected one of {', '.join(EXECUTIONS)}"
    unknown: Any = "sparse"
    with pytest.raises(ValueError, match=message):
        Mode(execution=unknown)
    with pytest.raises(ValueError, match=message):
        lowered(ARCHS["A"], unknown, 8)


def test_evaluate_refuses_an_unknown_execution(start, tmp_path):
    with start("evaluate.py", "--workdir=run", "--execution=nonsense", cwd=tmp_path) as process:
        printed, errors = process.communicate(timeout=300)
    known = "|".join(EXECUTIONS)
    expected = f"error: --execution is 'nonsense'; value should be one of <{known}>.\n"
    assert (process.returncode, printed, errors) == (2, "", expected)
