"""The training state, a pytree, and the network as a pure function of it."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx, traverse_util
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int

from urnet_jax.config import Config, architecture
from urnet_jax.nets.resnet import ResNet
from urnet_jax.train import optimizer

Tree = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """All that a training step reads and writes.

    Attributes:
      step: steps taken over all phases.
      phase_step: steps taken in the present phase.
      params: the network's parameters, gates included, as nested dicts.
      batch_stats: BatchNorm's running mean and variance.
      opt_state: optax's state for the parameters that the phase trains.
      ema_params: exponential moving average of `params`, or None.
    """

    step: Int[Array, ""]
    phase_step: Int[Array, ""]
    params: Tree
    batch_stats: Tree
    opt_state: optax.OptState
    ema_params: Tree | None

    @property
    def eval_params(self) -> Tree:
        """The parameters to evaluate: the average where there is one."""
        return self.params if self.ema_params is None else self.ema_params


def make_network(config: Config, key: Array) -> ResNet:
    """The config's network with initial weights from `key`."""
    return ResNet(
        architecture(config),
        dtype=config.model.dtype,
        gate_bias=config.model.gate_bias,
        rngs=nnx.Rngs(key),
    )


def network_graph(config: Config) -> nnx.GraphDef:
    """The network's structure, without computing any weight."""
    abstract = nnx.eval_shape(lambda: make_network(config, jax.random.key(0)))
    return nnx.split(abstract)[0]


def init_variables(config: Config) -> tuple[Tree, Tree]:
    """Initial params and batch_stats, from the config's seed alone."""
    # Each weight is drawn by its own unrolled generator: optimising that code takes far longer
    # than running it once.
    on_cpu = jax.default_backend() == "cpu"
    compiler_options: Any = {"xla_backend_optimization_level": "0"} if on_cpu else None
    return jax.jit(lambda: _variables(config), compiler_options=compiler_options)()


def _variables(config: Config) -> tuple[Tree, Tree]:
    network = make_network(config, jax.random.key(config.seed))
    _, params, batch_stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def apply(
    graph: nnx.GraphDef, params: Tree, batch_stats: Tree, images: Float[Array, "B H W C"],
    scale: Float[Array, " B"], **settings: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Runs the network purely; `settings` are those of `ResNet.__call__`.

    Returns:
      Logits [B, K], gates [B, N], with `with_gate_logits` those [B, N] too, and the batch_stats
      after the call (changed only where train=True).
    """
    network = nnx.merge(graph, nnx.State(params), nnx.State(batch_stats))
    outputs = network(images, scale, **settings)
    return *outputs, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))


def replaced(own: Tree, found: Tree) -> Tree:
    """`own` with the leaves that `found` has too."""
    leaves, others = map(traverse_util.flatten_dict, (own, found))
    return traverse_util.unflatten_dict({path: others.get(path, leaves[path]) for path in leaves})


def begin_phase(
    params: Tree, batch_stats: Tree, config: Config, phase: str, steps_per_epoch: float,
    step: int | Array = 0,
) -> TrainState:  # fmt: skip
    """The state at the first step of a phase: given weights, a fresh optimiser."""
    tx = optimizer.make_optimizer(config[phase], steps_per_epoch)
    trained, _ = optimizer.split_trained(params, phase)
    averaged = config[phase].ema_decay > 0
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        phase_step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(trained),
        # A copy: the step donates its state, and no buffer can be donated twice.
        ema_params=jax.tree.map(jnp.copy, params) if averaged else None,
    )


def abstract_state(
    config: Config, phase: str, steps_per_epoch: float, sharding: Sharding | None = None
) -> TrainState:
    """A phase's state in shapes and dtypes, to restore into.

    Each leaf is given `sharding`: without one of its own it would be asked for on the device that
    it was saved from.
    """

    def build() -> TrainState:
        return begin_phase(*_variables(config), config, phase, steps_per_epoch)

    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(build),
    )
