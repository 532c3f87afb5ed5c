"""How a gated unit is run at inference, so that work which gates skip is not done.

Most units leave the features of a sample that skips them just as they are (`Unit.keeps_features`):
for that sample nothing is computed or moved.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from urnet_jax.nets.contract import Features, GateInputs, Summary, Unit
from urnet_jax.nets.gates import decide
from urnet_jax.nets.mode import Execution, Mode

NUM_CAPACITIES = 8
"""Capacities of `compact`, in equal steps up to the batch."""

PIECES = (32, 16, 8, 6, 4, 2, 1)
"""Samples in the pieces of `pieces`, below the whole batch. On CPU larger ones were no faster, and
of the sizes between the powers of two only 6 was worth its compile time."""

State: TypeAlias = tuple[Features, Summary | None]
GatesAndLogits: TypeAlias = tuple[Float[Array, "B g"], Float[Array, "B g"] | None]


def choose(arch: Any, mode: Mode, batch_size: int, platform: str | None = None) -> Mode:
    """The mode with what `auto` stands for; any other execution stays.

    Args:
      arch: the network's description.
      mode: that was asked for.
      batch_size: of one device.
      platform: `cpu`, `gpu` or `tpu`; by default JAX's.
    """
    if mode.execution != "auto":
        return mode
    platform = platform or jax.default_backend()
    if platform == "cpu" and getattr(arch, "gathers_filters", False):
        return dataclasses.replace(mode, execution="filters")
    # A loop asks the host to decide at every turn, which costs an accelerator more than padding.
    batches = "pieces" if platform == "cpu" else "compact"
    return dataclasses.replace(mode, execution="cond" if batch_size == 1 else batches)


def run_gated(
    unit: Unit, x: Features, summary: Summary | None, inputs: GateInputs, mode: Mode
) -> tuple[Features, Summary | None, GatesAndLogits]:
    """A unit's output, its summary, and the mask of its residual, with the logits of its gates.

    Gates that are given have no logits. A summary is only given and returned where the execution
    carries it from unit to unit.
    """
    logits = None
    if inputs.given is None:
        seen = unit.summary(x) if summary is None else summary
        logits = unit.score(seen, inputs.scale, mode)
        logits = logits if inputs.offset is None else logits + inputs.offset
    decided = decide(logits, inputs, mode)
    gates = unit.mask(decided)
    if mode.execution != "dense":
        return *run_unit(unit, x, summary, gates, mode.execution), (gates, logits)
    # As decided: so a closed gate learns what opening it, and what is behind it, would do.
    residual = unit.residual(x, decided, mode)
    return unit.merge(unit.shortcut(x, mode), residual), None, (gates, logits)


def run_unit(
    unit: Unit,
    x: Features,
    summary: Summary | None,
    gates: Float[Array, "B g"],
    execution: Execution,
) -> State:
    """Runs one unit at inference without what its gates skip.

    Args:
      unit: of B samples' features.
      x: the features that enter it.
      summary: what gates see of them, if gates need that, else None.
      gates: that mask the unit's residual; a sample runs the unit where any is above 0.
      execution: not `dense` or `auto`.

    Returns:
      The unit's output and, unless `summary` is None, its summary; those of a sample that skips a
      unit which keeps its features are not computed again.
    """
    mode = Mode(execution=execution)
    shortcut = None if unit.keeps_features else unit.shortcut(x, mode)

    def run(state: State, rows: Int[Array, " n"] | None = None) -> State:
        """Runs the unit for the given samples, or for all; gates of 0 change nothing."""
        out, summary = state
        if shortcut is None and rows is not None and rows.size == len(gates):
            # All samples, wherever they stand. A unit with a shortcut of its own moves them even
            # so: else the residual would depend on nothing that changes in a loop, and XLA would
            # compute it before the loop.
            rows = None
        base = _take(out if shortcut is None else shortcut, rows)
        inputs = base if shortcut is None else _take(x, rows)
        new = unit.merge(base, unit.residual(inputs, _take(gates, rows), mode))
        if summary is not None:
            summary = _put(summary, rows, unit.summary(new))
        return _put(out, rows, new), summary

    if shortcut is None:
        state = x, summary
    else:
        skipped = unit.merge(shortcut, jnp.zeros_like(shortcut))
        state = skipped, None if summary is None else unit.summary(skipped)
    active = (gates > 0).any(axis=1)
    # Of no samples there is nothing to run, and a loop over none would never end.
    return _RUNNERS[execution](run, state, active) if active.size else state


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


def _one_by_one(run: Run, state: State, active: Array) -> State:
    if active.size == 1:
        return _cond(run, state, active)
    order, count = _active_first(active)
    return lax.fori_loop(0, count, lambda i, state: run(state, order[i][None]), state)


_RUNNERS: dict[str, Callable[[Run, State, Array], State]] = {
    "cond": _cond,
    "compact": _compact,
    "pieces": _pieces,
    "filters": _one_by_one,
}


def capacities(batch_size: int) -> tuple[int, ...]:
    """The capacities of `compact`, ascending; the last is the batch."""
    steps = range(1, NUM_CAPACITIES + 1)
    return tuple(sorted({-(-batch_size * step // NUM_CAPACITIES) for step in steps}))


def piece_sizes(batch_size: int) -> tuple[int, ...]:
    """The sizes of `pieces`, descending: the batch, and those of PIECES below it."""
    return (batch_size, *(size for size in PIECES if size < batch_size))
