"""What a residual network whose gates skip channels, and blocks, is made of, as plain numbers.

(Bejnordi, Blankevoort and Welling, "Batch-Shaping for Learning Conditional Channel Gated Networks",
1907.06627.)
"""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from urnet_jax.nets.channels.cost import BlockCost, ChannelCost
from urnet_jax.nets.cost import Linear
from urnet_jax.nets.residual import Residual, StageSpec


@dataclasses.dataclass(frozen=True)
class ChannelGated(Residual):
    """A ResNet whose gates each let a group of channels inside a block run.

    Gated are the channels between a block's convolutions: one layer of them in a basic block, two
    in a bottleneck. A block's output is not.

    Attributes, beside those of `Residual`:
      gate_group: channels of one gate; 1 is the paper's.
      gate_blocks: whether each block has a gate of its own too, the first of its gates, which lets
        it run at all; so S is met by whole blocks and by channels in them.
      gate_hidden: units of the hidden layer of a block's gates; the paper has 16.
      gate_scale: whether gates see S. Without, as in the paper, the network has one cost.
      gate_prior: a, which adds a * (S - r) to the logits of each gate, r being where it opens by
        `opens_at`: before anything is learned S is then the share of FLOPs. 0: no prior.
    """

    network: ClassVar[str] = "urnet_jax.nets.channels.resnet:ChannelResNet"
    task: ClassVar[str] = "urnet_jax.nets.tasks:Classification"
    gated: ClassVar[bool] = True
    gate_network: ClassVar[str] = "channels"
    external: ClassVar[None] = None

    gate_group: int = 1
    gate_blocks: bool = False
    gate_hidden: int = 16
    gate_scale: bool = True
    gate_prior: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for n, stage in enumerate(self.stages, 1):
            if self.gate_group < 1 or stage.mid_channels % self.gate_group:
                raise ValueError(
                    f"model.gate_group is {self.gate_group}, into which the {stage.mid_channels} "
                    f"channels of stage {n} do not divide: set a divisor of {self.width}."
                )
        if self.gate_hidden < 1:
            raise ValueError(f"model.gate_hidden is {self.gate_hidden}; expected at least 1.")
        if self.gate_prior < 0:
            raise ValueError(f"model.gate_prior is {self.gate_prior}; expected at least 0.")
        if self.gate_prior and not self.gate_scale:
            raise ValueError(
                f"model.gate_prior is {self.gate_prior}, which is a prior for each S, and "
                "model.gate_scale is False: set the one to 0 or the other to True."
            )

    @property
    def gate_noun(self) -> str:
        """What its gates switch, for people."""
        groups = "channels" if self.gate_group == 1 else f"groups of {self.gate_group} channels"
        return f"blocks and {groups}" if self.gate_blocks else groups

    @property
    def gathers_filters(self) -> bool:
        """Whether gathering the filters of open channels pays on CPU (`results/channels/`): not
        where blocks are small, as those of a ResNet-20 at 32 px.
        """
        return self.cost.full_macs >= 5e7 * self.num_blocks

    def groups(self, stage: StageSpec) -> int:
        """Gates of one layer of channels."""
        return stage.mid_channels // self.gate_group

    def gates_of_block(self, stage: StageSpec) -> int:
        """The block's own, where it has one, and those of each layer between two convolutions."""
        layers = len(stage.convolutions(entry=False)) - 1
        return self.gate_blocks + self.groups(stage) * layers

    def gate_layers(self, stage: StageSpec, channels: int) -> tuple[Linear, Linear]:
        """A block's gates over `channels` features: pooled, and S, to hidden units, to logits."""
        seen = channels + 1 if self.gate_scale else channels
        return Linear(seen, self.gate_hidden), Linear(self.gate_hidden, self.gates_of_block(stage))

    @property
    def cost(self) -> ChannelCost:
        """The multiply-adds of one image, block by block; no network is built."""
        return self._cost()

    @functools.cache  # noqa: B019  # Few networks live in a process, and each is small.
    def _cost(self) -> ChannelCost:
        stem_macs, size = self.stem.macs(self.image_size), self.stage_input_size
        always, blocks, gate_macs = stem_macs + self.head_macs, [], 0
        for stage in self.stages:
            for i in range(stage.num_blocks):
                if i == 0 and stage.changes_shape and self.shortcut == "B":
                    always += stage.projection.macs(size)
                convolutions, macs = stage.convolutions(entry=i == 0), []
                gate_macs += sum(
                    layer.macs for layer in self.gate_layers(stage, convolutions[0].inputs)
                )
                for convolution in convolutions:
                    macs.append(convolution.macs(size))
                    size = convolution.output_size(size)
                blocks.append(BlockCost(self.groups(stage), tuple(macs), self.gate_blocks))
        return ChannelCost(always + gate_macs, tuple(blocks), gate_macs, stem_macs)

    @functools.cached_property
    def opens_at(self) -> tuple[float, ...]:
        """The S at which each gate opens by the prior alone, so that S is the share of FLOPs.

        All layers of channels widen together or, where blocks have gates too, those of one block
        after another, in `block_order`, each block opening with its first channels. A gate opens
        where S is nearer to the share with it than to that without.
        """
        blocks, full, opens = self.cost.blocks, self.cost.full_macs, [0.0] * self.num_gates
        starts = np.cumsum([0, *(block.num_gates for block in blocks)]).tolist()
        counts = [[0] * (len(block.macs) - 1) for block in blocks]
        used, macs = [0] * len(blocks), self.cost.always_macs
        for b, layer, k in self._widening():
            counts[b][layer] += 1
            added, used[b] = blocks[b].used(counts[b]) - used[b], blocks[b].used(counts[b])
            if self.gate_blocks and layer == k == 0:
                opens[starts[b]] = macs / full
            place = starts[b] + self.gate_blocks + layer * blocks[b].groups + k
            opens[place] = (macs + added / 2) / full
            macs += added
        return tuple(opens)

    def _widening(self) -> list[tuple[int, int, int]]:
        """Block, layer and group of each gate of channels, in the order in which priors open them.

        Of the same share of their layers those of earlier blocks come first.
        """
        place = {block: n for n, block in enumerate(self.block_order)}
        order = []
        for b, block in enumerate(self.cost.blocks):
            for layer in range(len(block.macs) - 1):
                for k in range(block.groups):
                    turn = place[b] if self.gate_blocks else 0
                    order.append((turn, (k + 1) / block.groups, b, layer, k))
        return [gate[-3:] for gate in sorted(order)]

    def describe(self) -> str:
        """For people: 'channel-gated ResNet-20 (cifar, width 16, shortcut A, groups of 8) ...'."""
        scale = "" if self.gate_scale else ", one cost"
        kind = "block- and channel-gated" if self.gate_blocks else "channel-gated"
        return (
            f"{kind} {self.name} ({self.family}, width {self.width}, shortcut "
            f"{self.shortcut}, groups of {self.gate_group}{scale}) for {self.num_classes} classes "
            f"at {self.size_for_people}"
        )
