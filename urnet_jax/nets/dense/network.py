"""Residual networks that say a class for each pixel, plain and gated.

output = PSPNet(arch, rngs=nnx.Rngs(0))(images, GateInputs(scale))
output.prediction, output.gates  # [B, H, W, K], [B, G]
"""

from flax import nnx
from jaxtyping import Array

from urnet_jax.nets.channels.resnet import ChannelResNet
from urnet_jax.nets.contract import Features, Summary
from urnet_jax.nets.dense.head import AuxiliaryHead, PyramidHead
from urnet_jax.nets.layers import running
from urnet_jax.nets.mode import Build, Mode
from urnet_jax.nets.resnet import ResNet


class PSPNet(ResNet):
    """A dilated residual network with a pyramid pooling head (1612.01105); see `Segmenter`.

    It takes images of any height and width.
    """

    def _make_head(self, build: Build, rngs: nnx.Rngs) -> None:
        self.head = PyramidHead(self.arch, build, rngs)
        if self.arch.auxiliary_weight:
            self.auxiliary = AuxiliaryHead(self.arch, build, rngs)

    def _answer(
        self, features: list[Features], summary: Summary | None, size: tuple[int, ...], mode: Mode
    ) -> tuple[Array, Array | None]:
        del summary
        beside = None
        if self.arch.auxiliary_weight and not running(mode):
            beside = self.auxiliary(features[-2], size, mode)
        return self.head(features[-1], size, mode), beside


class ChannelPSPNet(PSPNet, ChannelResNet):
    """The same with channel gates; see `ChannelSegmenter`."""
