"""What every gated network has in common, so that training and evaluation need know no more.

output = network(images, GateInputs(scale), Mode(execution="auto"))
output.prediction, output.gates  # [B, K], [B, G]
"""

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from urnet_jax.nets.cost import Cost, Size
from urnet_jax.nets.mode import Mode

Features = Float[Array, "B _ _ _"]  # NHWC; what enters and what leaves differ in size
Summary = Float[Array, "B _"]


class GateParam(nnx.Param):
    """A parameter of a gate. What a phase trains goes by this type, not by a parameter's name."""


class GateStat(nnx.BatchStat):
    """A running statistic of a gate."""


def mark_as_gate(module: nnx.Module) -> None:
    """Turns the parameters and statistics of a module, at any depth, into a gate's."""
    for _, part in nnx.iter_modules(module):
        for name, value in list(vars(part).items()):
            if type(value) is nnx.Param:
                setattr(part, name, GateParam(value[...]))
            elif type(value) is nnx.BatchStat:
                setattr(part, name, GateStat(value[...]))


class GateInputs(NamedTuple):
    """What decides gates besides features: one pytree, passed whole.

    B samples by G gates in network order. Without what training draws gates are hard steps.

    Attributes:
      scale: S in [0, 1], one per sample.
      sigmoid: where a gate is a sigmoid in place of a step, as `gates.draw_sigmoid` draws it.
      noise: what is added to the gates' logits to decide them, as `gates.draw_noise` draws it.
      offset: what is part of the logits, beside what a gate scores: a prior, a calibration.
      given: gates that are used in place of the network's own: 1 runs a unit, 0 skips it.
      kept: what gates are multiplied by, as `gates.draw_kept` draws it for random drop.
    """

    scale: Float[Array, " B"]
    sigmoid: Bool[Array, "B G"] | None = None
    noise: Float[Array, "B G"] | None = None
    offset: Float[Array, "B G"] | None = None
    given: Float[Array, "B G"] | None = None
    kept: Float[Array, "B G"] | None = None

    def shifted(self, by: Float[Array, "B G"]) -> "GateInputs":
        """With `by` added to the offset."""
        return self._replace(offset=by if self.offset is None else self.offset + by)

    def columns(self, start: int, stop: int) -> "GateInputs":
        """Those of the gates from `start` to before `stop`; the scale stays."""
        return GateInputs(self.scale, *jax.tree.map(lambda a: a[:, start:stop], self[1:]))

    def stacked(self, units: int) -> "GateInputs":
        """To loop over equal units: [units, B] and [units, B, G / units]."""

        def stack(array: Array) -> Array:
            batch, gates = array.shape
            return jnp.moveaxis(array.reshape(batch, units, gates // units), 1, 0)

        scale = jnp.broadcast_to(self.scale, (units, *self.scale.shape))
        return GateInputs(scale, *jax.tree.map(stack, self[1:]))


@flax.struct.dataclass
class Output:
    """What a network returns; losses, costs, metrics and plots read nothing else.

    Attributes:
      prediction: float32 logits of the classes, of each image or of each of its pixels.
      gates: float32, one row per sample; 0 where a sample skips a unit. A plain network's are 1.
      gate_logits: what the network's own gates were made of: a step opens at 0 and above, unless
        another gate leaves it nothing to switch. None where gates are given.
      aux: losses that the network adds to its task's, by name; scalars, weighed already.
      auxiliary: what a head on the way says, which helps training alone; it learns as the
        prediction does, with the weight `auxiliary_weight` of the network's description.
    """

    prediction: Float[Array, "B *pixels K"]
    gates: Float[Array, "B G"]
    gate_logits: Float[Array, "B G"] | None = None
    aux: dict[str, Float[Array, ""]] = flax.struct.field(default_factory=dict)
    auxiliary: Float[Array, "B *pixels K"] | None = None


@runtime_checkable
class Unit(Protocol):
    """What gates can skip: Y = merge(shortcut(X), residual(X, gates)).

    Gates and their mask give the same residual; a sample skips a unit where its whole mask is 0.
    """

    @property
    def keeps_features(self) -> bool:
        """Whether the shortcut is X itself, and merging it with zeros changes nothing.

        A sample that skips such a unit is neither computed nor moved.
        """
        ...

    def shortcut(self, x: Features, mode: Mode) -> Features:
        """What a sample that skips the unit goes on with, but for `merge`."""
        ...

    def mask(self, gates: Float[Array, "B g"]) -> Float[Array, "B g"]:
        """What gates come to: themselves, but 0 where another one leaves them nothing to switch."""
        ...

    def residual(self, x: Features, mask: Float[Array, "B g"], mode: Mode) -> Features:
        """What the unit adds; zeros for a mask of zeros."""
        ...

    def merge(self, shortcut: Features, residual: Features | Float[Array, ""]) -> Features:
        """The unit's output."""
        ...

    def summary(self, x: Features) -> Summary:
        """What the gates of the next unit see of this one's output."""
        ...

    def score(self, summary: Summary, scale: Float[Array, " B"], mode: Mode) -> Float[Array, "B g"]:
        """The logits of the unit's gates; BatchNorm in them goes by `mode.gates_batch_norm`."""
        ...


@runtime_checkable
class Description(Protocol):
    """A network in plain numbers, a frozen dataclass: it is built from them, and counted.

    Its fields but the first three are those of the config's section `model`.

    Attributes:
      num_classes: outputs of the head.
      image_size: of the input in pixels: the side of a square, or height and width.
      image_channels: of the input.
      network: where the network's class is, as "package.module:Class"; it is called with the
        description, a `mode.Build` and `rngs`.
      task: where that of its task is; it is called with nothing.
    """

    network: ClassVar[str]
    task: ClassVar[str]

    @property
    def num_classes(self) -> int: ...

    @property
    def image_size(self) -> Size: ...

    @property
    def image_channels(self) -> int: ...

    @property
    def name(self) -> str: ...  # short, as ResNet-20

    @property
    def gated(self) -> bool: ...  # whether it has gates that are trained and decide what runs

    @property
    def num_gates(self) -> int: ...  # G

    @property
    def gate_groups(self) -> tuple[tuple[str, int], ...]: ...  # of plots: name, gates; sums to G

    @property
    def cost(self) -> Cost: ...

    def describe(self) -> str: ...  # for people, in a few words
