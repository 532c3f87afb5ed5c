"""What networks for dense prediction are made of, as plain numbers.

A dilated residual network, whose last two stages keep the resolution of the second, with a pyramid
pooling head (PSPNet, Zhao et al. 2017, 1612.01105); its blocks or its channels are gated, or both.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Self

from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.channels.architecture import ChannelGated
from urnet_jax.nets.cost import Convolution, sides
from urnet_jax.nets.labels import Labels
from urnet_jax.nets.residual import Residual, StageSpec

BINS = (1, 2, 3, 6)
"""A side of each grid of the pyramid, in cells (1612.01105, section 3.2)."""

DILATIONS = (1, 1, 2, 4)
"""Of each stage's 3x3 convolutions; those above 1 take the place of strides."""


@dataclasses.dataclass(frozen=True)
class Dense(Residual):
    """What both kinds have, beside `Residual`.

    Attributes:
      auxiliary_weight: of the loss of the auxiliary head behind the third stage, which is there in
        training alone; 0: there is none.
    """

    task: ClassVar[str] = "urnet_jax.nets.tasks:Segmentation"
    labels: ClassVar[Labels] = "map"

    auxiliary_weight: float = 0.4

    def __post_init__(self) -> None:
        if self.family != "imagenet":
            raise ValueError(
                f"model.family is {self.family!r}; networks for dense prediction have four stages: "
                "set 'imagenet'."
            )
        super().__post_init__()
        if self.auxiliary_weight < 0:
            raise ValueError(
                f"model.auxiliary_weight is {self.auxiliary_weight}; expected at least 0."
            )
        if self.stages[0].out_channels < 4:
            raise ValueError(f"model.width is {self.width}; expected at least 4 channels.")

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """Those of the network for whole images; the last two are dilated."""
        return tuple(
            dataclasses.replace(stage, dilation=apart, stride=1 if apart > 1 else stage.stride)
            for stage, apart in zip(super().stages, DILATIONS, strict=True)
        )

    @property
    def reduction(self) -> Convolution:
        """Of the last features, pooled to a grid of the pyramid: to a quarter of the channels."""
        channels = self.stages[-1].out_channels
        return Convolution(1, channels, channels // len(BINS))

    @property
    def fusion(self) -> Convolution:
        """Of the last features beside all grids of the pyramid, to a quarter of the channels."""
        inputs = self.stages[-1].out_channels + len(BINS) * self.reduction.outputs
        return Convolution(3, inputs, self.reduction.outputs)

    @property
    def classifier(self) -> Convolution:
        """The last layer, at every position."""
        return Convolution(1, self.fusion.outputs, self.num_classes)

    @property
    def auxiliary(self) -> tuple[Convolution, Convolution]:
        """The head behind the third stage: its convolution and its last layer."""
        channels = self.stages[-2].out_channels
        first = Convolution(3, channels, channels // 4)
        return first, Convolution(1, first.outputs, self.num_classes)

    @property
    def head_macs(self) -> int:
        """Of the pyramid, its fusion and the last layer; pooling and resizing are free."""
        size = self.stage_output_sizes[-1]
        pyramid = sum(self.reduction.macs(cells) for cells in BINS)
        return pyramid + self.fusion.macs(size) + self.classifier.macs(size)

    @property
    def name(self) -> str:
        """Short: 'PSPNet-18'."""
        return f"PSPNet-{self.depth}"

    def at(self, image_size: Sequence[int]) -> Self:
        """The network for images of another height and width: the same weights, another cost."""
        height, width = image_size
        return dataclasses.replace(self, image_size=(height, width))

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the prediction before it is resized to the image's."""
        return sides(self.stage_output_sizes[-1])


@dataclasses.dataclass(frozen=True)
class Segmenter(Dense, Architecture):
    """Dense prediction, plain or with a gate for every block; see `Architecture`."""

    network: ClassVar[str] = "urnet_jax.nets.dense.network:PSPNet"
    task: ClassVar[str] = Dense.task

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate_network == "external":
            raise ValueError(
                "model.gate_network is 'external', which networks for dense prediction do not "
                "have: set 'block'."
            )


@dataclasses.dataclass(frozen=True)
class ChannelSegmenter(Dense, ChannelGated):
    """Dense prediction with channel gates, with gates of blocks or without; see `ChannelGated`."""

    network: ClassVar[str] = "urnet_jax.nets.dense.network:ChannelPSPNet"
    task: ClassVar[str] = Dense.task
