"""Averaged weights, and the BatchNorm statistics that belong to them.

The average of many networks is another network. With the statistics of the one in training, or an
average of theirs, it can be worse than each; so its own are measured, on training images.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from urnet_jax import config as config_lib
from urnet_jax import streams
from urnet_jax.config import Config
from urnet_jax.data.splits import Split
from urnet_jax.nets.network import Tree
from urnet_jax.streams import Stream
from urnet_jax.train import draws, feed
from urnet_jax.train.objective import Along, make_loss
from urnet_jax.train.state import TrainState
from urnet_jax.xla import sharding
from urnet_jax.xla.compilation import compiler_options

FORGET = 40
"""Batches in which the running statistics forget where they came from."""

KEEP = 40
"""Batches after those, over which the running statistics are averaged."""

Forward = Callable[..., Tree]


def with_own_statistics(
    state: TrainState, config: Config, phase: str, steps_per_epoch: float, split: Split, mesh: Mesh
) -> TrainState:
    """The state, the statistics of its averaged network measured anew; as it is without one.

    The network sees the first FORGET + KEEP batches of a run, as training shows them, with S and
    gates as training draws them; so the statistics depend on the weights and the seed alone. All
    processes of a run call it together.
    """
    average = state.ema_params
    if average is None:
        return state
    forward = _forward(config_lib.to_json(config), phase, steps_per_epoch, mesh)
    # From the state's own, so that they are the same however often they were measured before.
    stats, total = state.batch_stats, None
    with contextlib.closing(feed.own_batches(config, split)) as batches:
        for number in range(FORGET + KEEP):
            batch = sharding.global_batch(next(batches), mesh)
            stats = forward(average.params, stats, batch, state.phase_step, jnp.asarray(number))
            if number >= FORGET:
                total = stats if total is None else jax.tree.map(jnp.add, total, stats)
    # What the phase leaves alone stays bit for bit: a mean of equals can round.
    own: Any = jax.tree.map(
        lambda begun, last, x: jnp.where(last == begun, begun, x / KEEP),
        state.batch_stats, stats, total,
    )  # fmt: skip
    return dataclasses.replace(state, ema_params=average._replace(batch_stats=own))


@functools.cache
def _forward(config_json: str, phase: str, steps_per_epoch: float, mesh: Mesh) -> Forward:
    """f(params, batch_stats, batch, phase_step, number) -> batch_stats after that batch."""
    config = config_lib.from_json(config_json)
    platform = sharding.platform(mesh)
    loss_fn = make_loss(config, phase, platform)
    draw = draws.for_training(config, phase, steps_per_epoch)
    progress = draws.progress(config, phase, steps_per_epoch)

    def forward(
        params: Tree, batch_stats: Tree, batch: Mapping[str, Array], phase_step: Array,
        number: Array,
    ) -> Tree:  # fmt: skip
        key = jax.random.fold_in(streams.key(config.seed, Stream.STATISTICS), number)
        inputs = draw(key, phase_step, batch["label"].shape[0])
        along = Along(progress(phase_step), None)
        _, (batch_stats, _) = loss_fn({}, along, params, batch_stats, {**batch, "inputs": inputs})
        return batch_stats

    same, split = sharding.replicated(mesh), sharding.split(mesh)
    return jax.jit(
        forward, compiler_options=compiler_options(platform),
        in_shardings=(same, same, split, same, same), out_shardings=same,
    )  # fmt: skip
