"""Pure training and evaluation steps.

All randomness is `fold_in` of the seed: by the step for scales and gates, by epoch and example
index for augmentation. Two runs that take the same step from the same state agree bit for bit.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt8

from urnet_jax import augment, optimizer, scales
from urnet_jax.architecture import Execution
from urnet_jax.compilation import compiler_options
from urnet_jax.config import Config, architecture
from urnet_jax.losses import cross_entropy, scale_loss
from urnet_jax.metrics import TrainMetrics
from urnet_jax.state import TrainState, Tree, apply, network_graph

Batch = Mapping[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, TrainMetrics]]


def make_train_step(config: Config, phase: str, steps_per_epoch: float) -> TrainStep:
    """The jitted step of one phase; it donates its state.

    In `pretrain` all gates are 1 and S is ignored. In `gates` only gates move: BatchNorm uses its
    running statistics and leaves them be. In `joint` everything moves.

    Returns:
      f(state, batch) -> (state, metrics); a batch has image (uint8), label, index and epoch.
    """
    graph, section = network_graph(config), config[phase]
    tx = optimizer.make_optimizer(section, steps_per_epoch)
    gated = config.model.gated and phase != "pretrain"
    unroll, num_blocks = use_unroll(config), architecture(config).num_blocks

    def loss_fn(
        trained: Tree, frozen: Tree, batch_stats: Tree, batch: Batch, key: Array
    ) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
        params = optimizer.join(trained, frozen)
        scale_key, gate_key = jax.random.split(key)
        size = batch["label"].shape[0]
        scale = scales.draw_scale(
            scale_key, config.scale.min, config.scale.max, config.scale.draw, size
        )
        logits, gates, batch_stats = apply(
            graph, params, batch_stats, _prepare(config, batch), scale,
            train=phase != "gates",
            key=gate_key,
            sigmoid_probability=config.gate.sigmoid_probability,
            draw=config.gate.draw,
            gates=None if gated else jnp.ones((size, num_blocks)),
            unroll=unroll,
        )  # fmt: skip
        ce = cross_entropy(logits, batch["label"])
        asked = scale_loss(gates, scale, config.scale.loss) if gated else jnp.zeros(())
        loss = ce.mean() + config.scale.beta * asked  # equation 5
        outputs = {
            "loss": loss,
            "cross_entropy": ce,
            "scale_loss": asked,
            "correct": (logits.argmax(-1) == batch["label"]).astype(jnp.float32),
            "usage": gates.mean(axis=1),
            "scale": scale if gated else jnp.ones_like(scale),
        }
        return loss, (batch_stats, outputs)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, TrainMetrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        trained, frozen = optimizer.split_trained(state.params, phase)
        grads, (batch_stats, outputs) = jax.grad(loss_fn, has_aux=True)(
            trained, frozen, state.batch_stats, batch, key
        )
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        moved: Any = optax.apply_updates(trained, updates)
        params = optimizer.join(moved, frozen)
        ema_params: Any = state.ema_params
        if ema_params is not None:
            # What the phase leaves alone is not averaged: the average of equals can round.
            averaged: Any = optimizer.split_trained(ema_params, phase)[0]
            averaged = optax.incremental_update(moved, averaged, 1 - section.ema_decay)
            ema_params = optimizer.join(averaged, frozen)
        outputs["gradient_norm"] = optax.tree.norm(grads)
        return TrainState(
            step=state.step + 1,
            phase_step=state.phase_step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_params,
        ), TrainMetrics.single_from_model_output(**outputs)  # fmt: skip

    return jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options())


EvalStep = Callable[
    [Tree, Tree, UInt8[Array, "B H W C"], Int[Array, " B"], Float[Array, " B"]],
    dict[str, Bool[Array, " B"] | Float[Array, "B ..."] | Int[Array, " B"]],
]


def make_eval_step(
    config: Config, phase: str = "joint", execution: Execution = "auto", mesh: Mesh | None = None
) -> EvalStep:
    """The jitted evaluation of one batch at one S per sample, gates hard (p = 0).

    A network that is still in `pretrain` has untrained gates: it is evaluated with all blocks on.

    Args:
      config: the run's.
      phase: that the weights come from.
      execution: how gated blocks are run, see `architecture.Execution`.
      mesh: of one axis `data` whose devices share the batch; each skips blocks for its own part.

    Returns:
      f(params, batch_stats, images, labels, scale) -> correct [B] (bool), prediction [B],
      loss [B] (cross entropy, nats), gates [B, N].
    """
    graph, num_blocks = network_graph(config), architecture(config).num_blocks
    gated = config.model.gated and phase != "pretrain"

    def eval_step(
        params: Tree, batch_stats: Tree, images: Array, labels: Array, scale: Array
    ) -> dict[str, Array]:
        logits, gates, _ = apply(
            graph, params, batch_stats,
            augment.normalize(images, *augment.normalization(config.data.name)), scale,
            gates=None if gated else jnp.ones((images.shape[0], num_blocks)),
            execution=execution if gated else "dense",
        )  # fmt: skip
        prediction = logits.argmax(-1).astype(jnp.int32)
        return {
            "correct": prediction == labels,
            "prediction": prediction,
            "loss": cross_entropy(logits, labels),
            "gates": gates,
        }

    if mesh is not None:
        same, split = P(), P("data")
        eval_step = jax.shard_map(
            eval_step, mesh=mesh, in_specs=(same, same, split, split, split), out_specs=split,
            # JAX cannot follow replication through loops that depend on each device's samples.
            check_vma=False,
        )  # fmt: skip
    return jax.jit(eval_step, compiler_options=compiler_options())


def use_unroll(config: Config) -> bool:
    """Whether training unrolls a stage's blocks; XLA:CPU differentiates loops slowly."""
    choice = config.model.scan
    return jax.default_backend() == "cpu" if choice == "auto" else choice == "unroll"


def _prepare(config: Config, batch: Batch) -> Any:
    images = augment.augment_images(
        batch["image"], batch["index"], batch["epoch"],
        seed=config.seed, mode=config.data.augment, padding=config.data.crop_padding,
    )  # fmt: skip
    return augment.normalize(images, *augment.normalization(config.data.name))
