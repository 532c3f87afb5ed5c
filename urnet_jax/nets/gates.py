"""The Conditional Gating Module and its stochastic activation (URNet, section 3)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from urnet_jax.nets.architecture import gate_layers
from urnet_jax.nets.contract import GateInputs, mark_as_gate
from urnet_jax.nets.mode import Mode

GateDraw = Literal["gate", "sample", "step"]


def last_layer_init(silent: bool) -> nnx.Initializer:
    """The initial weights of a gate's last layer: zeros, or Flax's usual ones."""
    return nnx.initializers.zeros if silent else nnx.initializers.lecun_normal()


class ConditionalGate(nnx.Module):
    """Scores one unit from the features that enter it and the scale S.

    Global average pool -> concatenation with S broadcast to C channels -> linear to C / r -> ReLU
    -> linear to one logit (URNet, figure 2 and "Conditional Gating Module"). With `normed` each
    pooled channel is normalised over the batch: the means of a channel differ little between
    images beside their own size, so that a gate hardly sees by what they differ.
    """

    def __init__(
        self, channels: int, *, reduction: int, bias: float, silent: bool = False,
        normed: bool = False, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        """A gate over `channels` features.

        Args:
          channels: C, channels of the features that enter the unit.
          reduction: r; the hidden layer has C / r units.
          bias: initial bias of the logit. Positive: the gate begins open.
          silent: the logit begins as the bias alone, so that a prior decides at first.
          normed: pooled features are normalised.
          rngs: of the initial weights.
        """
        # Without weights of its own: those of the layer that follows would do the same.
        self.norm = nnx.BatchNorm(
            channels, momentum=0.9, use_bias=False, use_scale=False, use_fast_variance=False,
            rngs=rngs,
        ) if normed else None  # fmt: skip
        first, last = gate_layers(channels, reduction)
        he_normal = nnx.initializers.he_normal()
        # Whatever the network's precision is: the step is hard, and a rounded logit another gate.
        self.fc1 = nnx.Linear(*first, kernel_init=he_normal, precision="highest", rngs=rngs)
        self.fc2 = nnx.Linear(
            *last, kernel_init=last_layer_init(silent),
            bias_init=nnx.initializers.constant(bias), precision="highest", rngs=rngs,
        )  # fmt: skip
        mark_as_gate(self)

    def __call__(
        self, summary: Float[Array, "B C"], scale: Float[Array, " B"], mode: Mode = Mode()
    ) -> Float[Array, "B 1"]:
        """The gate's logits, in float32, from pooled features."""
        if self.norm is not None:
            summary = self.norm(summary, use_running_average=mode.gates_batch_norm == "running")
        asked = jnp.broadcast_to(scale[:, None].astype(jnp.float32), summary.shape)
        return self.fc2(nnx.relu(self.fc1(jnp.concatenate([summary, asked], axis=-1))))


class ExternalGates(nnx.Module):
    """Scores all blocks at once from the image and S, by a network beside the one that it gates.

    The paper compares gates in the network with it. ResNet-8 -> linear to C / r units, to which S
    adds its own part -> ReLU -> linear to G logits; C are the channels of its last stage.
    """

    def __init__(
        self, network: nnx.Module, hidden: int, num_gates: int, *, bias: float,
        silent: bool = False, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        """`network` gives `hidden` numbers for an image; the rest as in `ConditionalGate`."""
        self.network = network
        self.of_scale = nnx.Linear(1, hidden, use_bias=False, precision="highest", rngs=rngs)
        self.fc2 = nnx.Linear(
            hidden, num_gates, bias_init=nnx.initializers.constant(bias), precision="highest",
            kernel_init=last_layer_init(silent), rngs=rngs,
        )  # fmt: skip
        mark_as_gate(self)

    def __call__(
        self, images: Float[Array, "B H W C"], scale: Float[Array, " B"], mode: Mode
    ) -> Float[Array, "B G"]:
        """The gates' logits; `mode` is the network's beside them."""
        network: Any = self.network
        own = Mode(batch_norm=mode.gates_batch_norm, unroll=mode.unroll)
        seen = network(images, GateInputs(scale), own).prediction
        return self.fc2(nnx.relu(seen + self.of_scale(scale[:, None].astype(jnp.float32))))


def prior(arch: Any, scale: Float[Array, " B"]) -> Float[Array, "B G"]:
    """What a network's prior adds to its gates' logits: a * (S - r), see `Architecture`."""
    return arch.gate_prior * (scale[:, None] - jnp.asarray(arch.opens_at, jnp.float32))


def decide(
    logits: Float[Array, "B g"] | None, inputs: GateInputs, mode: Mode
) -> Float[Array, "B g"]:
    """The gates of logits, or those that are given, without what random drop takes."""
    gates = inputs.given
    if gates is None:
        assert logits is not None  # Whoever is given no gates scores them.
        noisy = logits if inputs.noise is None else logits + inputs.noise
        gates = activate(noisy / mode.temperature, inputs.sigmoid, mode.straight_through)
    return gates if inputs.kept is None else gates * inputs.kept


def activate(
    logits: Float[Array, "..."], sigmoid: Bool[Array, "..."] | None, straight_through: bool = False
) -> Float[Array, "..."]:
    """Gates in [0, 1]: a sigmoid where `sigmoid`, elsewhere (or everywhere) a hard step at 0.5.

    A logit of zero or more is a sigmoid of 0.5 or more, and open. The step has no gradient, or with
    `straight_through` the sigmoid's (Bengio et al. 2013, 1308.3432).
    """
    soft = jax.nn.sigmoid(logits)
    step = (logits >= 0).astype(logits.dtype)
    if straight_through:
        step += soft - jax.lax.stop_gradient(soft)
    return step if sigmoid is None else jnp.where(sigmoid, soft, step)


def draw_sigmoid(
    key: Array, probability: float, draw: GateDraw, batch_size: int, num_gates: int
) -> Bool[Array, "B G"]:
    """Which gates of a training step are sigmoids, each with `probability` (the paper's p).

    The paper leaves open how often p is drawn: once per `step`, once per `sample`, or for every
    `gate` of every sample. Gate n draws from `fold_in(key, n)`.
    """
    shape = {"gate": (num_gates, batch_size), "sample": (1, batch_size), "step": (1, 1)}[draw]
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(shape[0]))
    drawn = jax.vmap(lambda k: jax.random.bernoulli(k, probability, shape[1:]))(keys)
    return jnp.broadcast_to(drawn, (num_gates, batch_size)).T


def draw_noise(key: Key[Array, ""], batch_size: int, num_gates: int) -> Float[Array, "B G"]:
    """Logistic noise for logits: a step then opens with the probability that is their sigmoid.

    With straight-through gradients this is the binary concrete estimator (Maddison et al. 2017,
    1611.00712), under which a gate that hangs in the balance is costly and learns to decide.
    """
    return jax.random.logistic(key, (batch_size, num_gates))


def draw_kept(
    keys: Key[Array, " B"], scale: Float[Array, " B"], num_gates: int
) -> Float[Array, "B G"]:
    """Gates that random drop leaves: 1 where a unit may run, else 0.

    Each sample has an order of its gates and keeps the first S * G of them, rounded up or down so
    that this is their number on average. Of two S the larger one keeps all that the other keeps.

    Args:
      keys: one per sample.
      scale: S, one per sample.
      num_gates: G.
    """

    def kept(key: Key[Array, ""], scale: Float[Array, ""]) -> Float[Array, " G"]:
        order, rounding = jax.random.split(key)
        place = jax.random.permutation(order, num_gates)
        count = jnp.floor(scale * num_gates + jax.random.uniform(rounding))
        return (place < count).astype(jnp.float32)

    return jax.vmap(kept)(keys, scale)
