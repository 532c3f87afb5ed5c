"""Residual networks whose gates skip channels, and blocks (Bejnordi et al. 2020, 1907.06627)."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from urnet_jax.nets.blocks import Block
from urnet_jax.nets.channels import filters
from urnet_jax.nets.channels.architecture import ChannelGated
from urnet_jax.nets.contract import Features, mark_as_gate
from urnet_jax.nets.gates import last_layer_init
from urnet_jax.nets.layers import running, weigh
from urnet_jax.nets.mode import Build, Mode
from urnet_jax.nets.residual import StageSpec
from urnet_jax.nets.resnet import ResNet


class ChannelGates(nnx.Module):
    """Scores the channels of one block from the features that enter it, and S where they heed it.

    Global average pool -> linear to 16 -> BatchNorm -> ReLU -> linear to a logit for each gate. A
    gate of the whole block, where there is one, has a last layer of its own and the first logit.
    """

    def __init__(
        self, arch: ChannelGated, stage: StageSpec, channels: int, bias: float, rngs: nnx.Rngs
    ) -> None:
        """The gates of a block that `channels` features enter.

        Args:
          arch: the network's.
          stage: where the block stands.
          channels: that the features have.
          bias: initial bias of the logits. Positive: gates begin open.
          rngs: of the initial weights.
        """
        first, last = arch.gate_layers(stage, channels)
        self.heeds = arch.gate_scale
        # Whatever the network's precision is: a step is hard, and a rounded logit another gate.
        self.fc1 = nnx.Linear(
            *first, use_bias=False, kernel_init=nnx.initializers.he_normal(), precision="highest",
            rngs=rngs,
        )  # fmt: skip
        self.bn = nnx.BatchNorm(last.inputs, momentum=0.9, epsilon=1e-5, rngs=rngs)
        scores = functools.partial(
            nnx.Linear, last.inputs, kernel_init=last_layer_init(arch.gate_prior > 0),
            bias_init=nnx.initializers.constant(bias), precision="highest", rngs=rngs,
        )  # fmt: skip
        self.fc2 = scores(last.outputs - arch.gate_blocks)
        self.block = scores(1) if arch.gate_blocks else None
        mark_as_gate(self)

    def __call__(
        self, summary: Float[Array, "B C"], scale: Float[Array, " B"], mode: Mode = Mode()
    ) -> Float[Array, "B g"]:
        """The gates' logits, in float32, from pooled features."""
        if self.heeds:
            summary = jnp.concatenate([summary, scale[:, None].astype(jnp.float32)], axis=-1)
        hidden = self.bn(self.fc1(summary), use_running_average=mode.gates_batch_norm == "running")
        hidden = nnx.relu(hidden)
        channels = self.fc2(hidden)
        if self.block is None:
            return channels
        return jnp.concatenate([self.block(hidden), channels], axis=-1)


class ChannelBlock(Block):
    """A residual block, Y = ReLU(shortcut(X) + F(X)), whose inner channels gates switch.

    Basic: F(X) = BN2(conv2(g * ReLU(BN1(conv1 X)))). In a bottleneck the outputs of the first two
    convolutions are switched. Where none of the last switched channels is open, F(X) is 0: what
    BatchNorm makes of nothing is left out, so that such a sample can skip the block.
    """

    def _make_gate(self, arch: Any, spec: StageSpec, build: Build, rngs: nnx.Rngs) -> None:
        self.group, self.whole = arch.gate_group, arch.gate_blocks
        self.gate: nnx.Module = ChannelGates(arch, spec, self.inputs, build.gate_bias, rngs)

    def mask(self, gates: Float[Array, "B g"]) -> Float[Array, "B g"]:
        """A closed block closes its channels, and one without any open channel is closed."""
        if not self.whole:
            return gates
        block, channels = gates[:, :1], gates[:, 1:]
        any_open, runs = lax.stop_gradient(((channels > 0).any(axis=1, keepdims=True), block > 0))
        return jnp.concatenate([block * any_open, channels * runs], axis=1)

    def residual(self, x: Features, mask: Float[Array, "B g"], mode: Mode) -> Features:
        """F(X), by the gates of each layer of channels in turn; the block's weighs it whole."""
        layers = jnp.split(mask[:, self.whole :], self.num_convs - 1, axis=1)
        if mode.execution == "filters":
            x = filters.residual(self, x, layers, self.group)
            return weigh(mask[:, :1], x) if self.whole else x
        any_open = lax.stop_gradient((layers[-1] > 0).any(axis=1, keepdims=True))
        for i, gates in enumerate(layers, 1):
            x = getattr(self, f"conv{i}")(x)
            x = nnx.relu(getattr(self, f"bn{i}")(x, running(mode)))
            x = weigh(jnp.repeat(gates, self.group, axis=1), x)
        x = getattr(self, f"conv{self.num_convs}")(x)
        norm = getattr(self, f"bn{self.num_convs}")
        weight = any_open.astype(jnp.float32)
        return norm(x, running(mode), weight=mask[:, :1] * weight if self.whole else weight)


class ChannelResNet(ResNet):
    """A residual network with channel gates."""

    block = ChannelBlock
