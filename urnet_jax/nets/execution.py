"""How a gated block is run at inference, so that work which gates skip is not done.

The features that enter a block are outputs of a ReLU. So a block that keeps their shape leaves the
features of a sample that skips it just as they are: for that sample nothing is computed or moved.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from urnet_jax.nets.architecture import EXECUTIONS, Execution
from urnet_jax.nets.gates import pool

if TYPE_CHECKING:
    from urnet_jax.nets.blocks import Block

NUM_CAPACITIES = 8
"""Capacities of `compact`, in equal steps up to the batch."""

PIECES = (32, 16, 8, 6, 4, 2, 1)
"""Samples in the pieces of `pieces`, below the whole batch. On CPU larger ones were no faster, and
of the sizes between the powers of two only 6 was worth its compile time."""

Features: TypeAlias = Float[Array, "B H W C"]
Pooled: TypeAlias = Float[Array, "B C"] | None
State: TypeAlias = tuple[Features, Pooled]


def choose(execution: Execution, batch_size: int, platform: str | None = None) -> Execution:
    """What `auto` stands for; any other execution is returned as it is.

    Args:
      execution: the choice that was made.
      batch_size: of one device.
      platform: `cpu`, `gpu` or `tpu`; by default JAX's.

    Raises:
      ValueError: there is no such execution.
    """
    if execution not in EXECUTIONS:
        raise ValueError(f"execution is {execution!r}; expected one of {', '.join(EXECUTIONS)}.")
    if execution != "auto":
        return execution
    if batch_size == 1:
        return "cond"
    # A loop asks the host to decide at every turn, which costs an accelerator more than padding.
    return "pieces" if (platform or jax.default_backend()) == "cpu" else "compact"


def run_block(
    block: "Block",
    x: Features,
    pooled: Pooled,
    gate: Float[Array, " B"],
    execution: Execution,
) -> State:
    """Runs one block at inference without what its gates skip.

    Args:
      block: of B samples' features.
      x: the features, outputs of a ReLU.
      pooled: their means over positions if gates need them, else None.
      gate: what weighs F; a sample runs the block where it is above 0.
      execution: not `dense` or `auto`.

    Returns:
      The block's output and, unless `pooled` is None, its means; those of a sample that skips a
      block which keeps the shape are not computed again.
    """
    if block.shortcut is None:
        shortcut = None
    else:
        shortcut = block.shortcut_path(x, train=False)

    def run(state: State, rows: Int[Array, " n"] | None = None) -> State:
        """Runs the block for the given samples, or for all; a gate of 0 changes nothing."""
        out, pooled = state
        if shortcut is None and rows is not None and rows.size == gate.size:
            # All samples, wherever they stand. An entry block moves them even so: else F would
            # depend on nothing that changes in a loop, and XLA would compute it before the loop.
            rows = None
        base = _take(out if shortcut is None else shortcut, rows)
        inputs = base if shortcut is None else _take(x, rows)
        weight = _take(gate, rows)[:, None, None, None].astype(x.dtype)
        new = nnx.relu(base + weight * block.residual(inputs, train=False))
        if pooled is not None:
            pooled = _put(pooled, rows, pool(new))
        return _put(out, rows, new), pooled

    if shortcut is not None:
        x_skipped = nnx.relu(shortcut)
        state = x_skipped, None if pooled is None else pool(x_skipped)
    else:
        state = x, pooled
    return _RUNNERS[execution](run, state, gate > 0)


def _take(array: Array, rows: Array | None) -> Array:
    if rows is None:
        return array
    return array.at[rows].get(mode="promise_in_bounds", unique_indices=True)


def _put(array: Array, rows: Array | None, new: Array) -> Array:
    if rows is None:
        return new
    return array.at[rows].set(new, mode="promise_in_bounds", unique_indices=True)


def _active_first(active: Array) -> tuple[Array, Array]:
    """The samples in an order that puts the active ones first, and how many those are."""
    return jnp.argsort(~active, stable=True), jnp.sum(active, dtype=jnp.int32)


Run: TypeAlias = Callable[..., State]


def _cond(run: Run, state: State, active: Array) -> State:
    return lax.cond(jnp.any(active), run, lambda state: state, state)


def _compact(run: Run, state: State, active: Array) -> State:
    order, count = _active_first(active)
    sizes = capacities(active.size)
    branches = [functools.partial(run, rows=order[:size]) for size in sizes[:-1]]
    branches = [lambda state: state, *branches, run]
    return lax.switch(jnp.searchsorted(jnp.array([0, *sizes]), count), branches, state)


def _pieces(run: Run, state: State, active: Array) -> State:
    order, count = _active_first(active)
    done = jnp.zeros((), jnp.int32)
    for size in piece_sizes(active.size):

        def body(carry: tuple[State, Array], size: int = size) -> tuple[State, Array]:
            state, done = carry
            return run(state, _take(order, done + jnp.arange(size))), done + size

        def fits(carry: tuple[State, Array], size: int = size) -> Array:
            return carry[1] + size <= count

        state, done = lax.while_loop(fits, body, (state, done))
    return state


_RUNNERS: dict[str, Callable[[Run, State, Array], State]] = {
    "cond": _cond,
    "compact": _compact,
    "pieces": _pieces,
}


def capacities(batch_size: int) -> tuple[int, ...]:
    """The capacities of `compact`, ascending; the last is the batch."""
    steps = range(1, NUM_CAPACITIES + 1)
    return tuple(sorted({-(-batch_size * step // NUM_CAPACITIES) for step in steps}))


def piece_sizes(batch_size: int) -> tuple[int, ...]:
    """The sizes of `pieces`, descending: the batch, and those of PIECES below it."""
    return (batch_size, *(size for size in PIECES if size < batch_size))
