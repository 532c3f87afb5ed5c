"""Another kind of network, as an application may bring: two gates a unit, and a loss of its own.

No room of the library knows of it: a config names it, as model.kind.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from urnet_jax.nets.contract import GateInputs, Output, mark_as_gate
from urnet_jax.nets.cost import Convolution, Linear
from urnet_jax.nets.execution import choose, run_gated
from urnet_jax.nets.layers import pool
from urnet_jax.nets.mode import Build, Mode

AUX_WEIGHT = 0.01


@dataclasses.dataclass(frozen=True)
class ToyCost:
    """The second gate of a unit pays only where the first is open: a product of masks."""

    always_macs: int
    conv_macs: int
    gate_macs: int
    stem_macs: int
    units: int

    @property
    def full_macs(self) -> int:
        return self.always_macs + 2 * self.units * self.conv_macs

    def macs(self, gates: Any) -> Any:
        pairs = (gates > 0).reshape(len(gates), self.units, 2)
        first, both = pairs[:, :, 0].sum(axis=1), pairs.all(axis=2).sum(axis=1)
        return self.always_macs + (first + both) * self.conv_macs

    def share(self, gates: Any) -> Any:
        pairs = gates.reshape(len(gates), self.units, 2)
        used = pairs[:, :, 0].sum(axis=1) + pairs.prod(axis=2).sum(axis=1)
        return (self.always_macs + used * self.conv_macs) / self.full_macs


@dataclasses.dataclass(frozen=True)
class Toy:
    """`units` units of `width` channels, each of two convolutions that a gate of its own skips."""

    num_classes: int
    image_size: int
    image_channels: int
    width: int = 8
    units: int = 2

    network: ClassVar[str] = "helpers.toy_network:ToyNetwork"
    task: ClassVar[str] = "urnet_jax.nets.tasks:Classification"
    gated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.units < 1:
            raise ValueError(f"model.units is {self.units}; expected at least 1.")

    @property
    def num_gates(self) -> int:
        return 2 * self.units

    @property
    def gate_groups(self) -> tuple[tuple[str, int], ...]:
        return tuple((f"unit {n + 1}", 2) for n in range(self.units))

    @property
    def name(self) -> str:
        return f"Toy-{self.units}"

    @property
    def stem(self) -> Convolution:
        return Convolution(3, self.image_channels, self.width)

    @property
    def conv(self) -> Convolution:
        return Convolution(3, self.width, self.width)

    @property
    def gate(self) -> Linear:
        return Linear(self.width + 1, 2)

    @property
    def cost(self) -> ToyCost:
        stem, gates = self.stem.macs(self.image_size), self.units * self.gate.macs
        always = stem + gates + self.width * self.num_classes
        return ToyCost(always, self.conv.macs(self.image_size), gates, stem, self.units)

    def describe(self) -> str:
        return f"toy of {self.units} units (width {self.width}) for {self.num_classes} classes"


@dataclasses.dataclass(frozen=True)
class Strange(Toy):
    """With a field that no config can hold."""

    sizes: list[int] = dataclasses.field(default_factory=list)


def conv(spec: Convolution, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(spec.inputs, spec.outputs, (spec.kernel, spec.kernel), rngs=rngs)


class ToyUnit(nnx.Module):
    """Y = X + g1 * (A + g2 * conv2(A)), A = tanh(conv1(X))."""

    keeps_features = True

    def __init__(self, arch: Toy, build: Build, rngs: nnx.Rngs) -> None:
        self.conv1, self.conv2 = conv(arch.conv, rngs), conv(arch.conv, rngs)
        bias = nnx.initializers.constant(build.gate_bias)
        self.decider = nnx.Linear(*arch.gate, bias_init=bias, rngs=rngs)  # not called a gate
        mark_as_gate(self.decider)

    def shortcut(self, x: Any, mode: Mode) -> Any:
        return x

    def mask(self, gates: Any) -> Any:
        return gates

    def residual(self, x: Any, mask: Any, mode: Mode) -> Any:
        first, second = mask[:, None, None, :1], mask[:, None, None, 1:]
        inner = jnp.tanh(self.conv1(x))
        return first * (inner + second * self.conv2(inner))

    def merge(self, shortcut: Any, residual: Any) -> Any:
        return shortcut + residual

    def summary(self, x: Any) -> Any:
        return pool(x)

    def score(self, summary: Any, scale: Any, mode: Any) -> Any:
        return self.decider(jnp.concatenate([summary, 4 * scale[:, None] - 2], axis=1))


class ToyNetwork(nnx.Module):
    """A convolution, the units, and a linear head; large logits cost a little."""

    def __init__(self, arch: Toy, build: Build, *, rngs: nnx.Rngs) -> None:
        self.arch = arch
        self.stem = conv(arch.stem, rngs)
        self.units = nnx.List([ToyUnit(arch, build, rngs) for _ in range(arch.units)])
        self.head = nnx.Linear(arch.width, arch.num_classes, rngs=rngs)

    def __call__(self, images: Any, inputs: GateInputs, mode: Mode = Mode()) -> Output:
        mode = choose(self.arch, mode, len(images))
        x, gates, logits = jnp.tanh(self.stem(images)), [], []
        summary = pool(x) if mode.execution != "dense" else None
        for n, unit in enumerate(self.units):
            own = inputs.columns(2 * n, 2 * n + 2)
            x, summary, (of_unit, scored) = run_gated(unit, x, summary, own, mode)
            gates.append(of_unit)
            logits.append(scored)
        prediction = self.head(pool(x))
        if inputs.given is not None:
            return Output(prediction, jnp.concatenate(gates, axis=1))
        scored = jnp.concatenate(logits, axis=1)
        aux = {"logit_size": AUX_WEIGHT * jnp.mean(jnp.square(scored))}
        return Output(prediction, jnp.concatenate(gates, axis=1), scored, aux)


def macs_by_hand(arch: Toy, gates: np.ndarray) -> list[int]:
    """Multiply-adds of each sample, counted gate by gate."""
    size = arch.image_size**2
    each, counted = 9 * arch.width**2 * size, []
    for row in gates:
        macs = 9 * arch.image_channels * arch.width * size + arch.width * arch.num_classes
        for first, second in row.reshape(-1, 2):
            macs += (
                2 * (arch.width + 1) + (each if first else 0) + (each if first and second else 0)
            )
        counted.append(macs)
    return counted
