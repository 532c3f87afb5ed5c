"""What a residual network is made of, as plain numbers.

The network (`resnet.py`) is built from these numbers, and its multiply-adds are counted from the
same ones, so that neither can drift from the other.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import numpy as np

from urnet_jax.nets.cost import Convolution, Linear, UnitCost

Shortcut = Literal["A", "pool", "B"]

BlockKind = Literal["basic", "bottleneck"]

GateNetwork = Literal["block", "external"]

IMAGENET_BLOCKS: dict[int, tuple[BlockKind, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    72: ("bottleneck", (3, 4, 14, 3)),
    75: ("bottleneck", (3, 4, 15, 3)),
    84: ("bottleneck", (3, 4, 18, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
"""Depth -> block and blocks per stage: He et al. 2016 (1512.03385), table 1; 72, 75 and 84 are the
shortened ResNet-101 of the URNet paper's table 2."""


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """One stage: an entry block, which may change shape, and `num_blocks - 1` identical ones."""

    block: BlockKind
    num_blocks: int
    in_channels: int
    mid_channels: int
    out_channels: int
    stride: int

    @property
    def changes_shape(self) -> bool:
        return self.stride != 1 or self.in_channels != self.out_channels

    def convolutions(self, *, entry: bool) -> tuple[Convolution, ...]:
        """Those of a block's residual function: 3x3 twice, or 1x1, 3x3 with the stride, 1x1."""
        inputs, stride = (self.in_channels, self.stride) if entry else (self.out_channels, 1)
        mid, outputs = self.mid_channels, self.out_channels
        if self.block == "basic":
            return Convolution(3, inputs, mid, stride), Convolution(3, mid, outputs)
        first, last = Convolution(1, inputs, mid), Convolution(1, mid, outputs)
        return first, Convolution(3, mid, mid, stride), last

    @property
    def projection(self) -> Convolution:
        """The shortcut `B` of an entry block that changes shape."""
        return Convolution(1, self.in_channels, self.out_channels, self.stride)


def gate_layers(channels: int, reduction: int) -> tuple[Linear, Linear]:
    """A gate over `channels` features: pooled features and S to C / r units, and those to one."""
    hidden = max(1, channels // reduction)
    return Linear(2 * channels, hidden), Linear(hidden, 1)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A plain or gated ResNet.

    Attributes:
      family: `cifar` (3x3 stem, three stages of BasicBlocks, depth 6n+2; He et al. 2016, section
        4.2) or `imagenet` (7x7 stem and max-pool, four stages; table 1).
      depth: layers with weights, counted as in He et al.; 72, 75 and 84, as in the URNet paper,
        count three to a block and leave out stem and head.
      num_classes: outputs of the head.
      image_size: height and width of the square input, in pixels.
      image_channels: 3 for colour, 1 for grey.
      width: channels of the stem; the stages widen from it as published.
      shortcut: where the shape changes, `A` takes every second pixel and pads channels with zeros,
        `pool` averages 2x2 pixels and pads, `B` is a 1x1 convolution with BatchNorm (option B of
        He et al., section 3.3). ImageNet networks use `B`.
      gated: whether gates decide which blocks run.
      gate_network: what the gates come from. `block`: each block has a ConditionalGate. `external`:
        a ResNet-8 beside the network sees the image and S and sets all gates at once (the paper's
        comparison); of the `cifar` family only.
      gate_reduction: a gate's hidden layer has channels / gate_reduction units.
      gate_prior: a, which adds a * (S - r) to the logits of each gate, r being where its block
        opens by `opens_at`: before anything is learned S is then the share of FLOPs. 0: no prior.
      gate_norm: what a block's gate sees of the features is normalised over the batch.
    """

    network: ClassVar[str] = "urnet_jax.nets.resnet:ResNet"
    task: ClassVar[str] = "urnet_jax.nets.tasks:Classification"

    family: Literal["cifar", "imagenet"]
    depth: int
    num_classes: int
    image_size: int
    image_channels: int = 3
    width: int = 16
    shortcut: Shortcut = "A"
    gated: bool = True
    gate_network: GateNetwork = "block"
    gate_reduction: int = 2
    gate_prior: float = 0.0
    gate_norm: bool = False

    def __post_init__(self) -> None:
        if self.family not in ("cifar", "imagenet"):
            raise ValueError(f"model.family is {self.family!r}; expected 'cifar' or 'imagenet'.")
        if self.family == "cifar" and (self.depth < 8 or (self.depth - 2) % 6):
            near = max(8, 6 * round((self.depth - 2) / 6) + 2)
            raise ValueError(
                f"model.depth is {self.depth}; a CIFAR ResNet has depth 6n+2 (8, 14, 20, ...): "
                f"the nearest is {near}."
            )
        if self.family == "imagenet" and self.depth not in IMAGENET_BLOCKS:
            known = ", ".join(map(str, IMAGENET_BLOCKS))
            raise ValueError(
                f"model.depth is {self.depth}; an ImageNet ResNet has one of the depths {known}."
            )
        if self.shortcut not in ("A", "pool", "B"):
            raise ValueError(f"model.shortcut is {self.shortcut!r}; expected 'A', 'pool' or 'B'.")
        if self.family == "imagenet" and self.shortcut != "B":
            raise ValueError(
                f"model.shortcut is {self.shortcut!r}; ImageNet ResNets use projections: set 'B'."
            )
        if self.width < 1:
            raise ValueError(f"model.width is {self.width}; expected at least 1 channel.")
        if self.gate_network not in ("block", "external"):
            raise ValueError(
                f"model.gate_network is {self.gate_network!r}; expected 'block' or 'external'."
            )
        if self.gated and self.gate_network == "external" and self.family != "cifar":
            raise ValueError(
                "model.gate_network is 'external', a ResNet-8, which only the cifar family has: "
                "set 'block'."
            )
        if self.gate_norm and self.gate_network == "external":
            raise ValueError(
                "model.gate_norm is True and model.gate_network 'external', which sees the image "
                "itself: set gate_norm to False, or gate_network to 'block'."
            )
        narrowest = self.stages[0].in_channels
        if self.gated and not 1 <= self.gate_reduction <= narrowest:
            raise ValueError(
                f"model.gate_reduction is {self.gate_reduction}; expected 1 to {narrowest}, the "
                "channels that the first gate sees."
            )

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """The stages in network order."""
        if self.family == "cifar":
            block: BlockKind = "basic"
            blocks: tuple[int, ...] = ((self.depth - 2) // 6,) * 3
        else:
            block, blocks = IMAGENET_BLOCKS[self.depth]
        expansion = 4 if block == "bottleneck" else 1
        specs, in_channels = [], self.width
        for i, num_blocks in enumerate(blocks):
            mid = self.width * 2**i
            stride = 1 if i == 0 else 2
            specs.append(StageSpec(block, num_blocks, in_channels, mid, mid * expansion, stride))
            in_channels = mid * expansion
        return tuple(specs)

    @property
    def num_blocks(self) -> int:
        """Residual blocks."""
        return sum(stage.num_blocks for stage in self.stages)

    @property
    def num_gates(self) -> int:
        """One for every block; those of a plain network are always open."""
        return self.num_blocks

    @property
    def gate_groups(self) -> tuple[tuple[str, int], ...]:
        """The stages, in network order: what each is called, and its gates."""
        return tuple((f"stage {n}", s.num_blocks) for n, s in enumerate(self.stages, 1))

    @functools.cached_property
    def opens_at(self) -> tuple[float, ...]:
        """The S at which each block opens by the prior alone, so that S is the share of FLOPs.

        First come the blocks that change shape, then the first of the other stages, then one of
        each stage in turn, from the last stage on. A block opens where S is nearer to the share
        with it than to that without.
        """
        entries, places, start = [], [], 0
        for n, stage in enumerate(self.stages):
            entries.append((not stage.changes_shape, n, start))
            places += [(i, -n, start + i) for i in range(1, stage.num_blocks)]
            start += stage.num_blocks
        share, opens = self.cost.always_macs / self.cost.full_macs, [0.0] * self.num_blocks
        for *_, block in sorted(entries) + sorted(places):
            own = int(self.cost.unit_macs[block]) / self.cost.full_macs
            opens[block] = share + own / 2
            share += own
        return tuple(opens)

    @property
    def stem(self) -> Convolution:
        """The first convolution."""
        kernel, stride = (3, 1) if self.family == "cifar" else (7, 2)
        return Convolution(kernel, self.image_channels, self.width, stride)

    @property
    def head(self) -> Linear:
        """The last layer, from the means of the last features to the classes."""
        return Linear(self.stages[-1].out_channels, self.num_classes)

    @property
    def cost(self) -> UnitCost:
        """The multiply-adds of one image, part by part; no network is built."""
        return self._cost()

    @functools.cache  # noqa: B019  # Few networks live in a process, and each is small.
    def _cost(self) -> UnitCost:
        stem_macs, size = self.stem.macs(self.image_size), self.stage_input_size
        own_gates = self.gated and self.external is None
        always, unit_macs, gate_macs = stem_macs + self.head.macs, [], []
        for stage in self.stages:
            for i in range(stage.num_blocks):
                if i == 0 and stage.changes_shape and self.shortcut == "B":
                    always += stage.projection.macs(size)
                convolutions, macs = stage.convolutions(entry=i == 0), 0
                layers = gate_layers(convolutions[0].inputs, self.gate_reduction)
                gate_macs.append(sum(layer.macs for layer in layers) if own_gates else 0)
                for convolution in convolutions:
                    macs += convolution.macs(size)
                    size = convolution.output_size(size)
                unit_macs.append(macs)
        external = self._external_macs()
        always += sum(gate_macs) + external
        units, gates = (np.array(macs, np.int64) for macs in (unit_macs, gate_macs))
        return UnitCost(always, units, gates, stem_macs, external)

    def _external_macs(self) -> int:
        """A ResNet-8 to the hidden units, S to them, and from those to the blocks' logits."""
        if self.external is None:
            return 0
        hidden = self.external.num_classes
        return self.external.cost.full_macs + hidden + hidden * self.num_blocks

    @property
    def external(self) -> "Architecture | None":
        """The plain ResNet-8 of external gates, whose outputs are their hidden units; or None."""
        if not self.gated or self.gate_network != "external":
            return None
        hidden = max(1, self.stages[-1].out_channels // self.gate_reduction)
        return dataclasses.replace(
            self, depth=8, num_classes=hidden, gated=False, gate_network="block"
        )

    @property
    def stage_input_size(self) -> int:
        """Height and width of the features that enter the first stage, in pixels."""
        if self.family == "cifar":
            return self.image_size
        return -(-(-(-self.image_size // 2)) // 2)

    @property
    def name(self) -> str:
        """Short: 'ResNet-20'."""
        return f"ResNet-{self.depth}"

    def describe(self) -> str:
        """For people: 'gated ResNet-20 (cifar, width 16, shortcut A) for 10 classes at 32 px'."""
        kind = "externally gated" if self.external else "gated" if self.gated else "plain"
        return (
            f"{kind} {self.name} ({self.family}, width {self.width}, shortcut "
            f"{self.shortcut}) for {self.num_classes} classes at {self.image_size} px"
        )
