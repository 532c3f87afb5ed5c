"""What a residual network whose gates skip blocks is made of, as plain numbers.

The network (`resnet.py`) is built from these numbers, and its multiply-adds are counted from the
same ones, so that neither can drift from the other.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import numpy as np

from urnet_jax.nets.cost import Linear, UnitCost
from urnet_jax.nets.residual import Residual

GateNetwork = Literal["block", "external"]


def gate_layers(channels: int, reduction: int) -> tuple[Linear, Linear]:
    """A gate over `channels` features: pooled features and S to C / r units, and those to one."""
    hidden = max(1, channels // reduction)
    return Linear(2 * channels, hidden), Linear(hidden, 1)


@dataclasses.dataclass(frozen=True)
class Architecture(Residual):
    """A ResNet, plain or with a gate for every block.

    Attributes, beside those of `Residual`:
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

    gated: bool = True
    gate_network: GateNetwork = "block"
    gate_reduction: int = 2
    gate_prior: float = 0.0
    gate_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
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

    @functools.cached_property
    def opens_at(self) -> tuple[float, ...]:
        """The S at which each block opens by the prior alone, so that S is the share of FLOPs.

        They open in `block_order`, each where S is nearer to the share with it than to that
        without.
        """
        share, opens = self.cost.always_macs / self.cost.full_macs, [0.0] * self.num_blocks
        for block in self.block_order:
            own = int(self.cost.unit_macs[block]) / self.cost.full_macs
            opens[block] = share + own / 2
            share += own
        return tuple(opens)

    @property
    def cost(self) -> UnitCost:
        """The multiply-adds of one image, part by part; no network is built."""
        return self._cost()

    @functools.cache  # noqa: B019  # Few networks live in a process, and each is small.
    def _cost(self) -> UnitCost:
        stem_macs, size = self.stem.macs(self.image_size), self.stage_input_size
        own_gates = self.gated and self.external is None
        always, unit_macs, gate_macs = stem_macs + self.head_macs, [], []
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

    def describe(self) -> str:
        """For people: 'gated ResNet-20 (cifar, width 16, shortcut A) for 10 classes at 32 px'."""
        kind = "externally gated" if self.external else "gated" if self.gated else "plain"
        return (
            f"{kind} {self.name} ({self.family}, width {self.width}, shortcut "
            f"{self.shortcut}) for {self.num_classes} classes at {self.size_for_people}"
        )
