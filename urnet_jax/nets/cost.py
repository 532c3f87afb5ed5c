"""What networks cost. The unit is one multiply-add ("mac"); FLOPs are twice that.

Convolutions and linear layers count, the gates' included, at every position of their output (also
where a kernel hangs over the padded border). Free by this convention are pooling (the gate's global
average too), BatchNorm, biases, activations, additions, and the shortcuts `A` and `pool`.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Int64, Num, Real

Size: TypeAlias = int | tuple[int, int]
"""Of images or features in pixels: height and width, or the side of a square."""


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


class Convolution(NamedTuple):
    """A square convolution, padded so that its output has ceil(size / stride) pixels a side.

    `dilation` is the distance of the input's pixels that it sees, in pixels.
    """

    kernel: int
    inputs: int
    outputs: int
    stride: int = 1
    dilation: int = 1

    def output_size(self, size: Size) -> Size:
        """The output's for an input of `size`; that of a square is its side."""
        if isinstance(size, int):
            return -(-size // self.stride)
        return -(-size[0] // self.stride), -(-size[1] // self.stride)

    def macs(self, size: Size) -> int:
        """Multiply-adds for an input of `size`."""
        area = math.prod(sides(self.output_size(size)))
        return self.kernel**2 * self.inputs * self.outputs * area


class Linear(NamedTuple):
    """A linear layer."""

    inputs: int
    outputs: int

    @property
    def macs(self) -> int:
        return self.inputs * self.outputs


@runtime_checkable
class Cost(Protocol):
    """What a network costs by what its gates let run."""

    @property
    def full_macs(self) -> int:
        """Multiply-adds of one image for which everything runs, the gates included."""
        ...

    @property
    def gate_macs(self) -> int:
        """Those of the gates, which every image pays."""
        ...

    @property
    def stem_macs(self) -> int:
        """Those of the first layer, which has no gradient for the image."""
        ...

    def macs(self, gates: Any) -> Any:
        """Multiply-adds of each sample, [B], of its gates, [B, G]; see `macs_per_sample`."""
        ...

    def share(self, gates: Any) -> Any:
        """Those as a share of `full_macs`, for losses: differentiable, of gates from 0 to 1.

        The same for gates of 0 and 1; one between is open with that probability.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class UnitCost:
    """The cost of a network whose gates each let one unit run.

    Attributes:
      always_macs: what every image pays: stem, projection shortcuts, gates and head.
      unit_macs: what each unit's residual function adds if it runs, in network order.
      unit_gate_macs: each unit's own gate, part of `always_macs`; zeros where units have none.
      stem_macs: of the stem, part of `always_macs`.
      external_macs: of gates beside the network, part of `always_macs`; 0 where there are none.
    """

    always_macs: int
    unit_macs: Int64[np.ndarray, " G"]
    unit_gate_macs: Int64[np.ndarray, " G"]
    stem_macs: int
    external_macs: int = 0

    @property
    def full_macs(self) -> int:
        return self.always_macs + int(self.unit_macs.sum())

    @property
    def gate_macs(self) -> int:
        return int(self.unit_gate_macs.sum()) + self.external_macs

    def macs(self, gates: Any) -> Any:
        if isinstance(gates, np.ndarray):
            return self.always_macs + np.where(gates > 0, self.unit_macs, 0).sum(axis=1)
        import jax.numpy as jnp  # A description is read without JAX too.

        # A sum, not a matrix product, which accelerators round to bfloat16 or TF32.
        unit_macs = jnp.asarray(self.unit_macs.astype(np.float32))
        return float(self.always_macs) + jnp.where(gates > 0, unit_macs, 0.0).sum(axis=1)

    def share(self, gates: Any) -> Any:
        unit_shares = (self.unit_macs / self.full_macs).astype(np.float32)
        return self.always_macs / self.full_macs + (gates * unit_shares).sum(axis=1)


def macs_per_sample(arch: Any, gates: Num[np.ndarray | Any, "B G"]) -> Real[np.ndarray | Any, " B"]:
    """Multiply-adds that each sample needs, given what its gates let run.

    Args:
      arch: the description of the network that the gates come from.
      gates: one row per sample, one column per gate in network order. What a gate above 0 lets run
        is run whole: a sigmoid gate, however small, costs all of it.

    Returns:
      Of NumPy gates, exact int64. Of JAX gates (also traced ones), float32, since JAX has no int64
      by default and a large network exceeds int32: right to about 1e-6 of the value.

    Raises:
      ValueError: the gates are not one row per sample of this network's gates.
    """
    if gates.ndim != 2 or gates.shape[1] != arch.num_gates:
        raise ValueError(
            f"gates has shape {tuple(gates.shape)}; expected [B, {arch.num_gates}], one row per "
            f"sample and one column per gate of the {arch.describe()}: pass them as the network "
            "returns them."
        )
    return arch.cost.macs(gates)


def flops_per_sample(
    arch: Any, gates: Num[np.ndarray | Any, "B G"]
) -> Real[np.ndarray | Any, " B"]:
    """FLOPs that each sample needs: twice `macs_per_sample`, of the same type and errors."""
    return 2 * macs_per_sample(arch, gates)


def least_share(arch: Any) -> float:
    """The share of a network's FLOPs that every image pays, whatever its gates do."""
    return float(arch.cost.macs(np.zeros((1, arch.num_gates)))[0]) / arch.cost.full_macs


def gate_overhead(arch: Any) -> float:
    """The gates' multiply-adds as a share of the same network without gates; 0 if it has none."""
    gates = arch.cost.gate_macs
    return gates / (arch.cost.full_macs - gates)
