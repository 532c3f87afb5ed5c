"""What a network costs, counted from its architecture alone.

The unit is one multiply-add ("mac"); FLOPs are twice that. Convolutions and linear layers count,
the gates' included, at every position of their output (also where a kernel hangs over the padded
border). Without multiply-adds by this convention, and so free: pooling (the gate's global average
too), BatchNorm, biases, activations, additions, and the shortcuts `A` and `pool`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int64, Real

from urnet_jax.nets.architecture import Architecture, StageSpec


@dataclasses.dataclass(frozen=True, eq=False)
class Cost:
    """Multiply-adds of one image.

    Attributes:
      always_macs: what every image pays: stem, projection shortcuts, gates and head.
      block_macs: what each block's residual function F adds if it is executed, in network order.
      gate_macs: each block's gate, in network order, already part of `always_macs`; zeros where
        blocks have none.
      external_macs: of external gates, part of `always_macs` too; 0 where there are none.
    """

    always_macs: int
    block_macs: Int64[np.ndarray, " N"]
    gate_macs: Int64[np.ndarray, " N"]
    external_macs: int = 0


def count_macs(arch: Architecture) -> Cost:
    """Counts the multiply-adds of one image, part by part; no network is built."""
    always, size = stem_macs(arch), arch.stage_input_size
    own_gates = arch.gated and arch.external is None
    block_macs, gate_macs = [], []
    for stage in arch.stages:
        for i in range(stage.num_blocks):
            in_channels = stage.in_channels if i == 0 else stage.out_channels
            # Both SAME and the published padding make ceil(size / stride) of a side.
            out_size = -(-size // stage.stride) if i == 0 else size
            block_macs.append(_block_macs(stage, in_channels, size, out_size))
            gate_macs.append(_gate_macs(in_channels, arch.gate_reduction) if own_gates else 0)
            if i == 0 and stage.changes_shape and arch.shortcut == "B":
                always += _conv_macs(1, in_channels, stage.out_channels, out_size)
            size = out_size
    external = _external_macs(arch)
    always += arch.stages[-1].out_channels * arch.num_classes + sum(gate_macs) + external
    return Cost(always, np.array(block_macs, np.int64), np.array(gate_macs, np.int64), external)


def stem_macs(arch: Architecture) -> int:
    """Multiply-adds of the first convolution on one image."""
    kernel, size = (3, arch.image_size) if arch.family == "cifar" else (7, -(-arch.image_size // 2))
    return _conv_macs(kernel, arch.image_channels, arch.width, size)


def network_macs(arch: Architecture) -> int:
    """Multiply-adds of one image with every block executed, gates included if there are any."""
    cost = count_macs(arch)
    return cost.always_macs + int(cost.block_macs.sum())


def macs_per_sample(
    arch: Architecture, gates: Float[np.ndarray | jax.Array, "B N"]
) -> Real[np.ndarray | jax.Array, " B"]:
    """Multiply-adds that each sample needs, given which of its blocks are executed.

    Args:
      arch: the network that the gates come from.
      gates: one row per sample, one column per block in network order. A block is executed where
        its gate is above 0, so a sigmoid gate, however small, costs the whole block.

    Returns:
      Of NumPy gates, exact int64. Of JAX gates (also traced ones), float32, since JAX has no int64
      by default and a large network exceeds int32: right to about 1e-6 of the value.

    Raises:
      ValueError: the gates are not one row per sample of this network's blocks.
    """
    cost = count_macs(arch)
    if gates.ndim != 2 or gates.shape[1] != arch.num_blocks:
        raise ValueError(
            f"gates has shape {tuple(gates.shape)}; expected [B, {arch.num_blocks}], one row per "
            f"sample and one column per block of the {arch.describe()}: pass them as the network "
            "returns them."
        )
    if isinstance(gates, jax.Array):
        # A sum, not a matrix product, which accelerators round to bfloat16 or TF32.
        block_macs = jnp.asarray(cost.block_macs.astype(np.float32))
        return float(cost.always_macs) + jnp.where(gates > 0, block_macs, 0.0).sum(axis=1)
    return cost.always_macs + np.where(gates > 0, cost.block_macs, 0).sum(axis=1)


def flops_per_sample(
    arch: Architecture, gates: Float[np.ndarray | jax.Array, "B N"]
) -> Real[np.ndarray | jax.Array, " B"]:
    """FLOPs that each sample needs: twice `macs_per_sample`, of the same type and errors."""
    return 2 * macs_per_sample(arch, gates)


def gate_overhead(arch: Architecture) -> float:
    """The gates' multiply-adds as a share of the same network without gates; 0 if it has none."""
    cost = count_macs(arch)
    gates = int(cost.gate_macs.sum()) + cost.external_macs
    return gates / (network_macs(arch) - gates)


def _block_macs(stage: StageSpec, in_channels: int, size: int, out_size: int) -> int:
    """F of one block whose input has `in_channels` channels and `size` pixels a side."""
    mid, out = stage.mid_channels, stage.out_channels
    if stage.block == "basic":
        return _conv_macs(3, in_channels, mid, out_size) + _conv_macs(3, mid, out, out_size)
    return (
        _conv_macs(1, in_channels, mid, size)
        + _conv_macs(3, mid, mid, out_size)
        + _conv_macs(1, mid, out, out_size)
    )


def _conv_macs(kernel: int, in_channels: int, out_channels: int, out_size: int) -> int:
    return kernel**2 * in_channels * out_channels * out_size**2


def _gate_macs(channels: int, reduction: int) -> int:
    """Linear from 2C (pooled features and broadcast S) to C / r units, and from those to 1."""
    hidden = max(1, channels // reduction)
    return 2 * channels * hidden + hidden


def _external_macs(arch: Architecture) -> int:
    """A ResNet-8 to the hidden units, S to them, and from those to the blocks' logits."""
    if arch.external is None:
        return 0
    hidden = arch.external.num_classes
    return network_macs(arch.external) + hidden + hidden * arch.num_blocks
