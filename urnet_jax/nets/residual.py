"""What residual networks are made of beside gates, as plain numbers."""

import dataclasses
from typing import Literal

from urnet_jax.nets.cost import Convolution, Linear, Size, sides

Shortcut = Literal["A", "pool", "B"]

BlockKind = Literal["basic", "bottleneck"]

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
    """One stage: an entry block, which may change shape, and `num_blocks - 1` identical ones.

    `dilation` is that of all of its 3x3 convolutions.
    """

    block: BlockKind
    num_blocks: int
    in_channels: int
    mid_channels: int
    out_channels: int
    stride: int
    dilation: int = 1

    @property
    def changes_shape(self) -> bool:
        return self.stride != 1 or self.in_channels != self.out_channels

    def convolutions(self, *, entry: bool) -> tuple[Convolution, ...]:
        """Those of a block's residual function: 3x3 twice, or 1x1, 3x3 with the stride, 1x1."""
        inputs, stride = (self.in_channels, self.stride) if entry else (self.out_channels, 1)
        mid, outputs, apart = self.mid_channels, self.out_channels, self.dilation
        if self.block == "basic":
            first = Convolution(3, inputs, mid, stride, apart)
            return first, Convolution(3, mid, outputs, dilation=apart)
        first, last = Convolution(1, inputs, mid), Convolution(1, mid, outputs)
        return first, Convolution(3, mid, mid, stride, apart), last

    @property
    def projection(self) -> Convolution:
        """The shortcut `B` of an entry block that changes shape."""
        return Convolution(1, self.in_channels, self.out_channels, self.stride)


@dataclasses.dataclass(frozen=True)
class Residual:
    """The plain network that gates of any kind stand in.

    Attributes:
      family: `cifar` (3x3 stem, three stages of BasicBlocks, depth 6n+2; He et al. 2016, section
        4.2) or `imagenet` (7x7 stem and max-pool, four stages; table 1).
      depth: layers with weights, counted as in He et al.; 72, 75 and 84, as in the URNet paper,
        count three to a block and leave out stem and head.
      num_classes: outputs of the head.
      image_size: of the input in pixels: the side of a square, or height and width.
      image_channels: 3 for colour, 1 for grey.
      width: channels of the stem; the stages widen from it as published.
      shortcut: where the shape changes, `A` takes every second pixel and pads channels with zeros,
        `pool` averages 2x2 pixels and pads, `B` is a 1x1 convolution with BatchNorm (option B of
        He et al., section 3.3). ImageNet networks use `B`.
    """

    family: Literal["cifar", "imagenet"]
    depth: int
    num_classes: int
    image_size: Size
    image_channels: int = 3
    width: int = 16
    shortcut: Shortcut = "A"

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
    def block_order(self) -> tuple[int, ...]:
        """The blocks, by their place in the network, in the order in which priors open them.

        First come those that change shape, then the first of the other stages, then one of each
        stage in turn, from the last stage on.
        """
        entries, places, start = [], [], 0
        for n, stage in enumerate(self.stages):
            entries.append((not stage.changes_shape, n, start))
            places += [(i, -n, start + i) for i in range(1, stage.num_blocks)]
            start += stage.num_blocks
        return tuple(block for *_, block in sorted(entries) + sorted(places))

    def gates_of_block(self, stage: StageSpec) -> int:
        """Gates of each of a stage's blocks; one, which in a plain network is always open."""
        del stage
        return 1

    @property
    def num_gates(self) -> int:
        """All blocks' gates, in network order."""
        return sum(gates for _, gates in self.gate_groups)

    @property
    def gate_groups(self) -> tuple[tuple[str, int], ...]:
        """The stages, in network order: what each is called, and its gates."""
        return tuple(
            (f"stage {n}", stage.num_blocks * self.gates_of_block(stage))
            for n, stage in enumerate(self.stages, 1)
        )

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
    def head_macs(self) -> int:
        """Multiply-adds of all that comes behind the last stage."""
        return self.head.macs

    @property
    def stage_input_size(self) -> Size:
        """Of the features that enter the first stage, in pixels."""
        if self.family == "cifar":
            return self.image_size
        return Convolution(3, 1, 1, stride=2).output_size(self.stem.output_size(self.image_size))

    @property
    def stage_output_sizes(self) -> tuple[Size, ...]:
        """Of the features that leave each stage, in pixels."""
        size, found = self.stage_input_size, []
        for stage in self.stages:
            size = stage.projection.output_size(size)
            found.append(size)
        return tuple(found)

    @property
    def size_for_people(self) -> str:
        """As in '224 px' or '240x180 px', width first."""
        height, width = sides(self.image_size)
        return f"{height} px" if isinstance(self.image_size, int) else f"{width}x{height} px"

    @property
    def name(self) -> str:
        """Short: 'ResNet-20'."""
        return f"ResNet-{self.depth}"
