"""The training state, a pytree, and what of it a phase moves."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int

from urnet_jax.config import Config
from urnet_jax.config import network as network_of
from urnet_jax.nets import network
from urnet_jax.nets.network import Path, Tree
from urnet_jax.phases import PHASES
from urnet_jax.train import optimizer


@flax.struct.dataclass
class TrainState:
    """All that a training step reads and writes.

    Attributes:
      step: steps taken over all phases.
      phase_step: steps taken in the present phase.
      params: the network's parameters, gates included, as nested dicts.
      batch_stats: BatchNorm's running mean and variance.
      opt_state: optax's state for the parameters that the phase trains.
      ema_params: the averaged network, or None; checkpoints have it under this name.
    """

    step: Int[Array, ""]
    phase_step: Int[Array, ""]
    params: Tree
    batch_stats: Tree
    opt_state: optax.OptState
    ema_params: "Averaged | None"

    @property
    def eval_variables(self) -> tuple[Tree, Tree]:
        """The params and batch_stats to evaluate: of the averaged network where there is one."""
        return (self.params, self.batch_stats) if self.ema_params is None else self.ema_params

    @property
    def controlled(self) -> "Controlled":
        """`opt_state` in two; there are no multipliers without a controller."""
        own = self.opt_state
        return own if isinstance(own, Controlled) else Controlled(own, None)


class Averaged(NamedTuple):
    """The averaged network.

    Attributes:
      params: exponential moving average of the parameters.
      batch_stats: statistics that belong to those, of `averaging.with_own_statistics`; between
        evaluations and checkpoints those of the last one.
    """

    params: Tree
    batch_stats: Tree


class Controlled(NamedTuple):
    """The state of an optimiser with a controller beside it.

    It takes the place of `TrainState.opt_state`, so that a state without one is what it has always
    been, in checkpoints too.

    Attributes:
      weights: optax's state.
      multipliers: what usage beyond S costs at each of `scale.anchors`.
    """

    weights: optax.OptState
    multipliers: Float[Array, " K"] | None

    @property
    def state(self) -> Any:
        """For `TrainState.opt_state`."""
        return self.weights if self.multipliers is None else self


def split_trained(params: Tree, phase: str, gates: frozenset[Path]) -> tuple[Tree, Tree]:
    """Parameters that a phase moves, and those that it leaves alone.

    Args:
      params: as nested dicts.
      phase: of `phases.PHASES`.
      gates: the paths of the gates' parameters, of `network.gate_paths`.
    """
    of_gates, rest = network.split_gates(params, gates)
    moves = PHASES[phase]
    if moves.moves_gates and moves.moves_rest:
        return params, {}
    return (of_gates, rest) if moves.moves_gates else (rest, of_gates)


def join(trained: Tree, frozen: Tree) -> Tree:
    """Undoes `split_trained`."""
    flat = traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict(flat)


def begin_phase(
    params: Tree, batch_stats: Tree, config: Config, phase: str, steps_per_epoch: float,
    step: int | Array = 0,
) -> TrainState:  # fmt: skip
    """The state at the first step of a phase: given weights, a fresh optimiser."""
    gates = network.gate_paths(*network_of(config))
    tx = optimizer.make_optimizer(config[phase], steps_per_epoch, gates)
    trained, _ = split_trained(params, phase, gates)
    averaged = config[phase].ema_decay > 0
    own_gates = PHASES[phase].own_gates and network_of(config)[0].gated
    controlled = own_gates and config.scale.dual_rate > 0
    multipliers = jnp.zeros(len(config.scale.anchors)) if controlled else None
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        phase_step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=Controlled(tx.init(trained), multipliers).state,
        # A copy: the step donates its state, and no buffer can be donated twice.
        ema_params=jax.tree.map(jnp.copy, Averaged(params, batch_stats)) if averaged else None,
    )


def abstract_state(
    config: Config, phase: str, steps_per_epoch: float, sharding: Sharding | None = None
) -> TrainState:
    """A phase's state in shapes and dtypes, to restore into.

    Each leaf is given `sharding`. Without one, Orbax restores it to the device it was saved from.
    """
    variables = network.abstract_variables(*network_of(config))

    def build(params: Tree, batch_stats: Tree) -> TrainState:
        return begin_phase(params, batch_stats, config, phase, steps_per_epoch)

    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(build, *variables),
    )
