"""Pure training and evaluation steps.

All randomness is `fold_in` of the seed: by the step for scales and gates, by epoch and example
index for augmentation. Two runs that take the same step from the same state agree bit for bit.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from urnet_jax.config import Config, architecture
from urnet_jax.data import augment
from urnet_jax.nets.gates import activate
from urnet_jax.train import draws, optimizer
from urnet_jax.train.groups import num_groups
from urnet_jax.train.losses import cross_entropy, scale_loss
from urnet_jax.train.metrics import TrainMetrics
from urnet_jax.train.state import TrainState, Tree, apply, network_graph
from urnet_jax.xla import sharding
from urnet_jax.xla.compilation import compiler_options

Batch = Mapping[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, TrainMetrics]]
LossFn = Callable[[Tree, Tree, Tree, Batch], tuple[Array, tuple[Tree, dict[str, Array]]]]


def make_train_step(
    config: Config, phase: str, steps_per_epoch: float, mesh: Mesh | None = None
) -> TrainStep:
    """The jitted step of one phase; it donates its state.

    In `pretrain` all gates are 1 and S is ignored. In `gates` only gates move: the network's
    BatchNorm uses its running statistics and leaves them be. In `joint` everything moves.

    With `accumulate_steps` = k the gradient is the mean over k equal parts of the batch, taken one
    after another. S and the gates' p are drawn for the whole batch, so that the step differs from
    that of k = 1 only where a quantity is not a mean over samples: BatchNorm normalises each part
    with its own statistics and updates the running ones k times, and with `scale.loss` = "group"
    each part's share of a group is held to the group's S.

    Args:
      config: the run's.
      phase: of `config.PHASES`.
      steps_per_epoch: training steps of one epoch, for the schedules.
      mesh: the batch is split over its axis `data`, all else is on each of its devices; BatchNorm
        sees the global batch. By default everything stays where it is.

    Returns:
      f(state, batch) -> (state, metrics); a batch has image (uint8), label, index and epoch.
    """
    section, platform = config[phase], sharding.platform(mesh)
    loss_fn = _make_loss(config, phase, platform)
    tx = optimizer.make_optimizer(section, steps_per_epoch)
    draw = draws.for_training(config, phase, steps_per_epoch)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, TrainMetrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        trained, frozen = optimizer.split_trained(state.params, phase)
        grads, batch_stats, outputs = _gradients(
            functools.partial(loss_fn, frozen), trained, state.batch_stats,
            {**batch, **draw(key, state.phase_step, batch["label"].shape[0])},
            config.accumulate_steps, unroll=use_unroll(config, platform),
        )  # fmt: skip
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        moved: Any = optax.apply_updates(trained, updates)
        ema_params: Any = state.ema_params
        if ema_params is not None:
            # What the phase leaves alone is not averaged: the average of equals can round.
            averaged: Any = optimizer.split_trained(ema_params, phase)[0]
            averaged = optax.incremental_update(moved, averaged, 1 - section.ema_decay)
            ema_params = optimizer.join(averaged, frozen)
        outputs["gradient_norm"] = optax.tree.norm(grads)
        outputs["state_norm"] = _norm((moved, batch_stats, opt_state, ema_params))
        after = TrainState(
            state.step + 1, state.phase_step + 1, optimizer.join(moved, frozen), batch_stats,
            opt_state, ema_params,
        )  # fmt: skip
        return after, TrainMetrics.single_from_model_output(**outputs)

    placed: Any = {}
    if mesh is not None:
        same = sharding.replicated(mesh)
        placed = {"in_shardings": (same, sharding.split(mesh)), "out_shardings": same}
    options = compiler_options(platform)
    return jax.jit(train_step, donate_argnums=0, compiler_options=options, **placed)


def _norm(state: Any) -> Array:
    """Finite if every number of the state is; its counters are left out."""
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return optax.tree.norm(leaves)


def _make_loss(config: Config, phase: str, platform: str) -> LossFn:
    """f(frozen, trained, batch_stats, batch) -> loss, (batch_stats, outputs); equation 5."""
    graph, num_blocks = network_graph(config), architecture(config).num_blocks
    gated = config.model.gated and phase != "pretrain"
    heeds = gated or draws.drops_in_training(config, phase)

    def loss_fn(
        frozen: Tree, trained: Tree, batch_stats: Tree, batch: Batch
    ) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
        labels, scale = batch["label"], batch["scale"]
        logits, gates, *gate_logits, batch_stats = apply(
            graph, optimizer.join(trained, frozen), batch_stats, _prepare(config, batch), scale,
            train=phase != "gates", train_gates=True,
            use_sigmoid=batch["use_sigmoid"], noise=batch.get("noise"), kept=batch.get("kept"),
            straight_through=config.gate.straight_through,
            gates=None if gated else jnp.ones((labels.shape[0], num_blocks)),
            unroll=use_unroll(config, platform), with_gate_logits=gated,
        )  # fmt: skip
        ce = cross_entropy(logits, labels)
        groups = None
        if config.scale.loss == "group":
            groups = num_groups(config.scale.draw, labels.shape[0])
        counted = gates
        if gated and config.scale.usage == "step":
            counted = activate(gate_logits[0], jnp.zeros(gates.shape, bool), straight_through=True)
        asked = scale_loss(counted, scale, groups) if gated else jnp.zeros(())
        loss = ce.mean() + config.scale.beta * asked
        return loss, (batch_stats, {
            "loss": loss,
            "cross_entropy": ce,
            "scale_loss": asked,
            "correct": (logits.argmax(-1) == labels).astype(jnp.float32),
            "usage": gates.mean(axis=1),
            "scale": scale if heeds else jnp.ones_like(scale),
        })  # fmt: skip

    return loss_fn


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
    divided = {
        name: jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0)
        for name, array in batch.items()
    }
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


def use_unroll(config: Config, platform: str) -> bool:
    """Whether training unrolls a stage's blocks; XLA:CPU differentiates loops slowly."""
    choice = config.model.scan
    return platform == "cpu" if choice == "auto" else choice == "unroll"


def _prepare(config: Config, batch: Batch) -> Any:
    images = augment.augment_images(
        batch["image"], batch["index"], batch["epoch"],
        seed=config.seed, mode=config.data.augment, padding=config.data.crop_padding,
    )  # fmt: skip
    return augment.normalize(images, *augment.normalization(config.data.name))
