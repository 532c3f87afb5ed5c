"""Residual blocks, the units of a ResNet, and the stages that they stand in.

A stage is an entry block and a body of identical blocks whose parameters are stacked along a new
first axis, so that one compiled block serves the whole body.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from urnet_jax.nets.contract import Features, GateInputs, Summary
from urnet_jax.nets.execution import GatesAndLogits, run_gated
from urnet_jax.nets.gates import ConditionalGate
from urnet_jax.nets.layers import conv, norm, pool, running
from urnet_jax.nets.mode import Build, Mode
from urnet_jax.nets.residual import StageSpec
from urnet_jax.xla.fusion import add_relu


class Block(nnx.Module):
    """A residual block, Y = ReLU(shortcut(X) + gate * F(X)) (URNet, equations 1 to 3).

    F is two 3x3 convolutions (basic) or 1x1, 3x3 with the stride, 1x1 (bottleneck), each followed
    by BatchNorm. The shortcut is always computed; the gate only weighs F.
    """

    def __init__(
        self, arch: Any, spec: StageSpec, build: Build, *, entry: bool, rngs: nnx.Rngs
    ) -> None:
        convolutions = spec.convolutions(entry=entry)
        self.inputs, self.outputs = convolutions[0].inputs, spec.out_channels
        self.stride = spec.stride if entry else 1
        self.resize = arch.shortcut if entry and spec.changes_shape else None
        self.num_convs = len(convolutions)
        for i, convolution in enumerate(convolutions, 1):
            setattr(self, f"conv{i}", conv(convolution, build, rngs))
            setattr(self, f"bn{i}", norm(convolution.outputs, build, rngs))
        if self.resize == "B":
            self.downsample_conv = conv(spec.projection, build, rngs)
            self.downsample_bn = norm(self.outputs, build, rngs)
        self._make_gate(arch, spec, build, rngs)

    def _make_gate(self, arch: Any, spec: StageSpec, build: Build, rngs: nnx.Rngs) -> None:
        if arch.gated and arch.gate_network == "block":
            self.gate: nnx.Module = ConditionalGate(
                self.inputs, reduction=arch.gate_reduction, bias=build.gate_bias,
                silent=arch.gate_prior > 0, normed=arch.gate_norm, rngs=rngs,
            )  # fmt: skip

    @property
    def keeps_features(self) -> bool:
        """True but for an entry block that changes shape: what enters is a ReLU's output."""
        return self.resize is None

    def mask(self, gates: Float[Array, "B g"]) -> Float[Array, "B g"]:
        """The gates as they are."""
        return gates

    def residual(self, x: Features, mask: Float[Array, "B g"], mode: Mode) -> Features:
        """Gate * F(X)."""
        for i in range(1, self.num_convs):
            x = getattr(self, f"conv{i}")(x)
            x = nnx.relu(getattr(self, f"bn{i}")(x, running(mode)))
        x = getattr(self, f"conv{self.num_convs}")(x)
        return getattr(self, f"bn{self.num_convs}")(x, running(mode), weight=mask)

    def shortcut(self, x: Features, mode: Mode) -> Features:
        """X, or X brought to the block's output shape."""
        if self.resize is None:
            return x
        if self.resize == "B":
            return self.downsample_bn(self.downsample_conv(x), use_running_average=running(mode))
        if self.resize == "pool":
            s = self.stride
            x = nnx.avg_pool(x, (s, s), (s, s), padding="SAME", count_include_pad=False)
        else:
            x = x[:, :: self.stride, :: self.stride]
        extra = self.outputs - self.inputs
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))

    def merge(self, shortcut: Features, residual: Features | Float[Array, ""]) -> Features:
        """ReLU of the sum."""
        return add_relu(shortcut, jnp.broadcast_to(residual, shortcut.shape))

    def summary(self, x: Features) -> Summary:
        """Means over positions."""
        return pool(x)

    def score(
        self, summary: Summary, scale: Float[Array, " B"], mode: Mode = Mode()
    ) -> Float[Array, "B g"]:
        """The gates' logits."""
        gate: Any = self.gate
        return gate(summary, scale, mode)


class Stage(nnx.Module):
    """An entry block and a body of identical blocks with stacked parameters."""

    def __init__(
        self, arch: Any, spec: StageSpec, build: Build, *, block: type[Block] = Block,
        rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        """Of blocks of the class `block`."""
        make = functools.partial(block, arch, spec, build)
        self.num_blocks, self.block_gates = spec.num_blocks, arch.gates_of_block(spec)
        self.entry = make(entry=True, rngs=rngs)
        if spec.num_blocks > 1:

            @nnx.split_rngs(splits=spec.num_blocks - 1)
            @nnx.vmap
            def stack(rngs: nnx.Rngs) -> Block:
                return make(entry=False, rngs=rngs)

            self.body = stack(rngs)

    def __call__(
        self, x: Features, summary: Summary | None, inputs: GateInputs, mode: Mode
    ) -> tuple[Features, Summary | None, GatesAndLogits]:
        """Runs the stage's n blocks of g gates; gates and logits are [B, n g]."""
        own = self.block_gates
        x, summary, entry = run_gated(self.entry, x, summary, inputs.columns(0, own), mode)
        if self.num_blocks == 1:
            return x, summary, entry
        graphdef, params, stats = nnx.split(self.body, nnx.Param, ...)
        batch = "batch" in (mode.batch_norm, mode.gates_batch_norm)

        def run_one(features: tuple[Features, Summary | None], block: tuple) -> tuple[tuple, tuple]:
            params, stats, inputs = block
            unit = nnx.merge(graphdef, params, stats)
            x, summary, gates = run_gated(unit, *features, inputs, mode)
            return (x, summary), (gates, nnx.state(unit, nnx.BatchStat) if batch else None)

        length = self.num_blocks - 1
        blocks = (params, stats, inputs.columns(own, own * self.num_blocks).stacked(length))
        if length == 1:
            # XLA:CPU runs convolutions in a loop naively, and a loop of one turn stays a loop.
            only = jax.tree.map(lambda array: array[0], blocks)
            (x, summary), found = run_one((x, summary), only)
            body, stats = jax.tree.map(lambda array: array[None], found)
        else:
            (x, summary), (body, stats) = lax.scan(
                run_one, (x, summary), blocks, unroll=mode.unroll
            )
        if batch:
            nnx.update(self.body, stats)
        return x, summary, jax.tree.map(_joined, entry, body)


def _joined(entry: Float[Array, "B g"], body: Float[Array, "n B g"]) -> Float[Array, "B m"]:
    blocks, batch, gates = body.shape
    of_body = jnp.moveaxis(body, 0, 1).reshape(batch, blocks * gates)
    return jnp.concatenate([entry, of_body], axis=1)
