"""Residual blocks, the units of a ResNet, and the stages that they stand in.

A stage is an entry block and a body of identical blocks whose parameters are stacked along a new
first axis, so that one compiled block serves the whole body.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from urnet_jax.nets.architecture import Architecture, StageSpec
from urnet_jax.nets.contract import Features, GateInputs, Summary, Unit
from urnet_jax.nets.cost import Convolution
from urnet_jax.nets.execution import run_unit
from urnet_jax.nets.gates import ConditionalGate, decide, pool
from urnet_jax.nets.mode import Build, Mode
from urnet_jax.xla.convolution import conv_general_dilated

GateAndLogit = tuple[Float[Array, "*n B g"], Float[Array, "*n B g"] | None]


def conv(spec: Convolution, build: Build, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution as He et al. have it: no bias, initial weights scaled by its fan-out."""
    # Explicit padding: `SAME` would pad strided convolutions on one side only, unlike He et al.
    return nnx.Conv(
        spec.inputs,
        spec.outputs,
        kernel_size=(spec.kernel, spec.kernel),
        strides=spec.stride,
        padding=[(spec.kernel // 2, spec.kernel // 2)] * 2,
        use_bias=False,
        dtype=jnp.dtype(build.dtype),
        precision=build.precision,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def norm(channels: int, build: Build, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm with PyTorch's constants."""
    return nnx.BatchNorm(
        channels, momentum=0.9, epsilon=1e-5, dtype=jnp.dtype(build.dtype), rngs=rngs
    )


def running(mode: Mode) -> bool:
    """Whether BatchNorm beside the gates normalises with its running statistics."""
    return mode.batch_norm == "running"


class Block(nnx.Module):
    """A residual block, Y = ReLU(shortcut(X) + gate * F(X)) (URNet, equations 1 to 3).

    F is two 3x3 convolutions (basic) or 1x1, 3x3 with the stride, 1x1 (bottleneck), each followed
    by BatchNorm. The shortcut is always computed; the gate only weighs F.
    """

    def __init__(
        self, arch: Architecture, spec: StageSpec, build: Build, *, entry: bool, rngs: nnx.Rngs
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
        if arch.gated and arch.gate_network == "block":
            self.gate = ConditionalGate(
                self.inputs, reduction=arch.gate_reduction, bias=build.gate_bias, rngs=rngs
            )

    @property
    def keeps_features(self) -> bool:
        """True but for an entry block that changes shape: what enters is a ReLU's output."""
        return self.resize is None

    def residual(self, x: Features, mask: Float[Array, "B 1"], mode: Mode) -> Features:
        """Gate * F(X)."""
        weight = mask[:, None, None, :].astype(x.dtype)
        for i in range(1, self.num_convs + 1):
            x = getattr(self, f"conv{i}")(x)
            x = getattr(self, f"bn{i}")(x, use_running_average=running(mode))
            x = nnx.relu(x) if i < self.num_convs else x
        return weight * x

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

    def merge(self, shortcut: Features, residual: Features) -> Features:
        """ReLU of the sum."""
        return nnx.relu(shortcut + residual)

    def summary(self, x: Features) -> Summary:
        """Means over positions."""
        return pool(x)

    def score(self, summary: Summary, scale: Float[Array, " B"]) -> Float[Array, "B 1"]:
        """The gate's logits."""
        return self.gate(summary, scale)


def run_gated(
    unit: Unit, x: Features, summary: Summary | None, inputs: GateInputs, mode: Mode
) -> tuple[Features, Summary | None, GateAndLogit]:
    """A unit's output, its summary, and the gates that masked its residual, with their logits.

    Gates that are given have no logits. A summary is only given and returned where the execution
    carries it from unit to unit.
    """
    logits = None
    if inputs.given is None:
        seen = unit.summary(x) if summary is None else summary
        logits = unit.score(seen, inputs.scale)
    gates = decide(logits, inputs, mode)
    if mode.execution != "dense":
        return *run_unit(unit, x, summary, gates, mode.execution), (gates, logits)
    residual = unit.residual(x, gates, mode)
    return unit.merge(unit.shortcut(x, mode), residual), None, (gates, logits)


class Stage(nnx.Module):
    """An entry block and a body of identical blocks with stacked parameters."""

    def __init__(
        self, arch: Architecture, spec: StageSpec, build: Build, *, rngs: nnx.Rngs
    ) -> None:
        make = functools.partial(Block, arch, spec, build)
        self.num_blocks = spec.num_blocks
        self.entry = make(entry=True, rngs=rngs)
        if spec.num_blocks > 1:

            @nnx.split_rngs(splits=spec.num_blocks - 1)
            @nnx.vmap
            def stack(rngs: nnx.Rngs) -> Block:
                return make(entry=False, rngs=rngs)

            self.body = stack(rngs)

    def __call__(
        self, x: Features, summary: Summary | None, inputs: GateInputs, mode: Mode
    ) -> tuple[Features, Summary | None, GateAndLogit]:
        """Runs the stage's n blocks; gates and logits are [B, n]."""
        x, summary, entry = run_gated(self.entry, x, summary, inputs.columns(0, 1), mode)
        if self.num_blocks == 1:
            return x, summary, entry
        graphdef, params, stats = nnx.split(self.body, nnx.Param, ...)
        batch = mode.batch_norm == "batch"

        def run_one(features: tuple[Features, Summary | None], block: tuple) -> tuple[tuple, tuple]:
            params, stats, inputs = block
            unit = nnx.merge(graphdef, params, stats)
            x, summary, gates = run_gated(unit, *features, inputs, mode)
            return (x, summary), (gates, nnx.state(unit, nnx.BatchStat) if batch else None)

        length = self.num_blocks - 1
        blocks = (params, stats, inputs.columns(1, self.num_blocks).stacked(length))
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


def _joined(entry: Float[Array, "B 1"], body: Float[Array, "n B 1"]) -> Float[Array, "B m"]:
    return jnp.concatenate([entry, body[:, :, 0].T], axis=1)
