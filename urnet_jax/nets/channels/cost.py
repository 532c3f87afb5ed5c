"""What a residual network costs whose gates let groups of channels run: products of masks."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class BlockCost:
    """One block, whose convolutions but the last give their output channels to gates.

    Attributes:
      groups: gates of each of those layers of channels.
      macs: of each convolution, with all of its channels.
      whole: whether a gate before those lets the whole block run.
    """

    groups: int
    macs: tuple[int, ...]
    whole: bool = False

    @property
    def num_gates(self) -> int:
        """Of the block."""
        return self.groups * (len(self.macs) - 1) + self.whole

    def used(self, counts: list[Any]) -> Any:
        """Multiply-adds where so many gates of each layer are open: a convolution needs the open
        ones of its outputs for the open ones of its inputs.

        They divide exactly: all of a gate's channels are equal.
        """
        total, inputs = 0, None
        for macs, outputs in zip(self.macs, [*counts, None], strict=True):
            mine = [count for count in (inputs, outputs) if count is not None]
            share = macs // self.groups ** len(mine)
            for count in mine:
                share = share * count
            total, inputs = total + share, outputs
        return total


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelCost:
    """The cost of a network with channel gates; see `cost.Cost`.

    Attributes:
      always_macs: what every image pays: stem, projection shortcuts, gates and head.
      blocks: in network order.
      gate_macs: of all gates, part of `always_macs`.
      stem_macs: of the stem, part of `always_macs`.
    """

    always_macs: int
    blocks: tuple[BlockCost, ...]
    gate_macs: int
    stem_macs: int

    @property
    def full_macs(self) -> int:
        """With all channels of all blocks."""
        return self.always_macs + sum(sum(block.macs) for block in self.blocks)

    def macs(self, gates: Any) -> Any:
        """Of each sample, [B], of its gates, [B, G]; exact for NumPy's."""
        if isinstance(gates, np.ndarray):
            return self._sum((gates > 0).astype(np.int64))
        return self._sum((gates > 0).astype(np.float32))

    def share(self, gates: Any) -> Any:
        """Those as a share of `full_macs`, differentiable."""
        return self._sum(gates) / float(self.full_macs)  # Beyond int32 too.

    def _sum(self, gates: Any) -> Any:
        total, start = self.always_macs, 0
        if gates.dtype != np.int64:
            total = float(total)  # Beyond int32, which is all that JAX has.
        for block in self.blocks:
            stop = start + block.num_gates
            ends = range(start + block.whole + block.groups, stop + 1, block.groups)
            counts = [gates[:, end - block.groups : end].sum(axis=1) for end in ends]
            used = block.used(counts)
            total, start = total + (gates[:, start] * used if block.whole else used), stop
        return total
