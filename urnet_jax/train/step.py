"""The pure training step.

All randomness comes from streams of the seed: by the step for scales and gates, by epoch and
example for augmentation. Two runs that take the same step from the same state agree bit for bit.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from urnet_jax import streams
from urnet_jax.config import Config
from urnet_jax.config import network as network_of
from urnet_jax.nets import network
from urnet_jax.nets.network import Tree
from urnet_jax.streams import Stream
from urnet_jax.train import draws, losses, optimizer
from urnet_jax.train.metrics import TrainMetrics
from urnet_jax.train.objective import Along, make_loss, use_unroll
from urnet_jax.train.state import Controlled, TrainState, join, split_trained
from urnet_jax.xla import sharding
from urnet_jax.xla.compilation import compiler_options

Batch = Mapping[str, Any]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, TrainMetrics]]


def make_train_step(
    config: Config, phase: str, steps_per_epoch: float, mesh: Mesh | None = None
) -> TrainStep:
    """The jitted step of one phase; it donates its state.

    In `pretrain` all gates are 1 and S is ignored. In `gates` only gates move: the network's
    BatchNorm uses its running statistics and leaves them be. In `joint` everything moves.

    With `accumulate_steps` = k the gradient is the mean over k equal parts of the batch, taken one
    after another. S and the gates' p are drawn for the whole batch, so that the step differs from
    that of k = 1 only where a quantity is not a mean over samples: BatchNorm normalises each part
    with its own statistics and updates the running ones k times, and each part's share of a group
    is held to what is asked of that: its S, the guard's targets, the form of batch-shaping.

    Args:
      config: the run's.
      phase: of `phases.PHASES`.
      steps_per_epoch: training steps of one epoch, for the schedules.
      mesh: the batch is split over its axis `data`, all else is on each of its devices; BatchNorm
        sees the global batch. By default everything stays where it is.

    Returns:
      f(state, batch) -> (state, metrics); a batch has image (uint8), label, index and epoch.
    """
    section, platform = config[phase], sharding.platform(mesh)
    gates, loss_fn = network.gate_paths(*network_of(config)), make_loss(config, phase, platform)
    tx = optimizer.make_optimizer(section, steps_per_epoch, gates)
    draw = draws.for_training(config, phase, steps_per_epoch)
    progress = draws.progress(config, phase, steps_per_epoch)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, TrainMetrics]:
        key = jax.random.fold_in(streams.key(config.seed, Stream.STEPS), state.step)
        trained, frozen = split_trained(state.params, phase, gates)
        inputs = draw(key, state.phase_step, batch["label"].shape[0])
        opt_state, multipliers = state.controlled
        along = Along(progress(state.phase_step), multipliers)
        grads, batch_stats, outputs = _gradients(
            functools.partial(loss_fn, frozen, along), trained, state.batch_stats,
            {**batch, "inputs": inputs}, config.accumulate_steps,
            unroll=use_unroll(config, platform),
        )  # fmt: skip
        updates, opt_state = tx.update(grads, opt_state, trained)
        moved: Any = optax.apply_updates(trained, updates)
        average = state.ema_params
        if average is not None:
            # What the phase leaves alone is not averaged: the average of equals can round.
            averaged: Any = split_trained(average.params, phase, gates)[0]
            averaged = optax.incremental_update(moved, averaged, 1 - section.ema_decay)
            average = average._replace(params=join(averaged, frozen))
        multipliers = _ascended(config, multipliers, outputs.pop("gaps"), outputs.pop("asked"))
        outputs["gradient_norm"] = optax.tree.norm(grads)
        outputs["state_norm"] = _norm((moved, batch_stats, opt_state, average, multipliers))
        after = TrainState(
            state.step + 1, state.phase_step + 1, join(moved, frozen), batch_stats,
            Controlled(opt_state, multipliers).state, average,
        )  # fmt: skip
        return after, TrainMetrics.single_from_model_output(**outputs)

    options = compiler_options(platform)
    return jax.jit(train_step, donate_argnums=0, compiler_options=options, **_placed(mesh))


def _placed(mesh: Mesh | None) -> dict[str, Any]:
    """Where a step's state and batch lie."""
    if mesh is None:
        return {}
    same = sharding.replicated(mesh)
    return {"in_shardings": (same, sharding.split(mesh)), "out_shardings": same}


def _ascended(config: Config, multipliers: Any, gaps: Array, asked: Array) -> Any:
    """The controller's multipliers after a step; None without one."""
    if multipliers is None:
        return None
    anchor = losses.anchor_of(asked, config.scale.anchors)
    return losses.ascended(multipliers, gaps, anchor, config.scale.dual_rate)


def _norm(state: Any) -> Array:
    """Finite if every number of the state is; its counters are left out."""
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return optax.tree.norm(leaves)


def _gradients(
    loss_fn: Callable, trained: Tree, batch_stats: Tree, batch: Batch, parts: int, *, unroll: bool
) -> tuple[Tree, Tree, dict[str, Array]]:
    """Gradients, batch_stats and outputs: means over `parts` equal parts of the batch."""
    gradient = jax.grad(loss_fn, has_aux=True)
    if parts == 1:
        grads, (batch_stats, outputs) = gradient(trained, batch_stats, batch)
        return grads, batch_stats, outputs

    def add(carry: tuple[Tree, Tree], part: Batch) -> tuple[tuple[Tree, Tree], dict[str, Array]]:
        grads, batch_stats = carry
        new, (batch_stats, outputs) = gradient(trained, batch_stats, part)
        return (jax.tree.map(jnp.add, grads, new), batch_stats), outputs

    # Every k-th sample: so each part lies on all the devices that the batch is split over.
    divided = jax.tree.map(
        lambda array: jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0), dict(batch)
    )
    zeros = jax.tree.map(jnp.zeros_like, trained)
    (grads, batch_stats), outputs = jax.lax.scan(
        add, (zeros, batch_stats), divided, unroll=parts if unroll else 1
    )
    grads = jax.tree.map(lambda total: total / parts, grads)
    merged = {
        name: array.mean() if array.ndim == 1 else array.reshape(-1)
        for name, array in outputs.items()
    }
    return grads, batch_stats, merged
