"""Residual blocks and the stages that they stand in, plain and gated.

A stage is an entry block and a body of identical blocks whose parameters are stacked along a new
first axis, so that one compiled block serves the whole body.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from urnet_jax.nets.architecture import Architecture, Execution, StageSpec
from urnet_jax.nets.execution import run_block
from urnet_jax.nets.gates import ConditionalGate, activate
from urnet_jax.xla.convolution import conv_general_dilated

Features = Float[Array, "B H W C"]
GateAndLogit = tuple[Float[Array, "*n B"], Float[Array, "*n B"] | None]


class GateInputs(NamedTuple):
    """What decides gates besides features and S, for n blocks or for one.

    Attributes:
      use_sigmoid: where a gate is a sigmoid instead of a step.
      noise: what is added to the logits before they become gates.
      given: gates that are used instead of the blocks' own.
      kept: what the blocks' own gates are multiplied by.
    """

    use_sigmoid: Bool[Array, "*n B"]
    noise: Float[Array, "*n B"] | None
    given: Float[Array, "*n B"] | None
    kept: Float[Array, "*n B"] | None


def conv(
    inputs: int, outputs: int, size: int, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """A convolution as He et al. have it: no bias, initial weights scaled by its fan-out."""
    # Explicit padding: `SAME` would pad strided convolutions on one side only, unlike He et al.
    return nnx.Conv(
        inputs,
        outputs,
        kernel_size=(size, size),
        strides=stride,
        padding=[(size // 2, size // 2)] * 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def norm(channels: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm with PyTorch's constants."""
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """A residual block, Y = ReLU(shortcut(X) + gate * F(X)) (URNet, equations 1 to 3).

    F is two 3x3 convolutions (basic) or 1x1, 3x3 with the stride, 1x1 (bottleneck), each followed
    by BatchNorm. The shortcut is always computed; the gate only weighs F.
    """

    def __init__(
        self, arch: Architecture, spec: StageSpec, *, entry: bool, dtype: jnp.dtype,
        gate_bias: float, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        inputs = spec.in_channels if entry else spec.out_channels
        self.stride = spec.stride if entry else 1
        self.inputs, self.outputs = inputs, spec.out_channels
        self.shortcut = arch.shortcut if entry and spec.changes_shape else None
        if spec.block == "basic":
            sizes = [(3, inputs, spec.mid_channels), (3, spec.mid_channels, spec.out_channels)]
            strided = 0
        else:
            mid = spec.mid_channels
            sizes, strided = [(1, inputs, mid), (3, mid, mid), (1, mid, spec.out_channels)], 1
        self.num_convs = len(sizes)
        for i, (size, c_in, c_out) in enumerate(sizes):
            stride = self.stride if i == strided else 1
            setattr(self, f"conv{i + 1}", conv(c_in, c_out, size, stride, dtype, rngs))
            setattr(self, f"bn{i + 1}", norm(c_out, dtype, rngs))
        if self.shortcut == "B":
            self.downsample_conv = conv(inputs, self.outputs, 1, self.stride, dtype, rngs)
            self.downsample_bn = norm(self.outputs, dtype, rngs)
        if arch.gated and arch.gate_network == "block":
            self.gate = ConditionalGate(
                inputs, reduction=arch.gate_reduction, bias=gate_bias, rngs=rngs
            )

    def residual(self, x: Features, *, train: bool) -> Features:
        """F(X)."""
        for i in range(1, self.num_convs + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x), use_running_average=not train)
            x = nnx.relu(x) if i < self.num_convs else x
        return x

    def shortcut_path(self, x: Features, *, train: bool) -> Features:
        """X, or X brought to the block's output shape."""
        if self.shortcut is None:
            return x
        if self.shortcut == "B":
            return self.downsample_bn(self.downsample_conv(x), use_running_average=not train)
        if self.shortcut == "pool":
            s = self.stride
            x = nnx.avg_pool(x, (s, s), (s, s), padding="SAME", count_include_pad=False)
        else:
            x = x[:, :: self.stride, :: self.stride]
        extra = self.outputs - self.inputs
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))

    def __call__(
        self, x: Features, pooled: Float[Array, "B C"] | None, scale: Float[Array, " B"],
        inputs: GateInputs, *, train: bool, straight_through: bool, execution: Execution,
    ) -> tuple[Features, Float[Array, "B D"] | None, GateAndLogit]:  # fmt: skip
        """The block's output, its means over positions, and the gate that weighed F.

        A gate that is given is used as is, and has no logit. Means are only given and returned
        where the execution carries them from block to block.
        """
        gate, logit = inputs.given, None
        if gate is None:
            logit = self.gate(x, scale) if pooled is None else self.gate.score(pooled, scale)
            noisy = logit if inputs.noise is None else logit + inputs.noise
            gate = activate(noisy, inputs.use_sigmoid, straight_through)
            gate = gate if inputs.kept is None else gate * inputs.kept
        if execution != "dense":
            return *run_block(self, x, pooled, gate, execution), (gate, logit)
        weight = gate[:, None, None, None].astype(x.dtype)
        residual = weight * self.residual(x, train=train)
        return nnx.relu(self.shortcut_path(x, train=train) + residual), None, (gate, logit)


class Stage(nnx.Module):
    """An entry block and a body of identical blocks with stacked parameters."""

    def __init__(
        self, arch: Architecture, spec: StageSpec, *, dtype: jnp.dtype, gate_bias: float,
        rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        make = functools.partial(Block, arch, spec, dtype=dtype, gate_bias=gate_bias)
        self.num_blocks = spec.num_blocks
        self.entry = make(entry=True, rngs=rngs)
        if spec.num_blocks > 1:

            @nnx.split_rngs(splits=spec.num_blocks - 1)
            @nnx.vmap
            def stack(rngs: nnx.Rngs) -> Block:
                return make(entry=False, rngs=rngs)

            self.body = stack(rngs)

    def __call__(
        self, x: Features, pooled: Float[Array, "B C"] | None, scale: Float[Array, " B"],
        inputs: GateInputs, *, train: bool, straight_through: bool, unroll: bool,
        execution: Execution,
    ) -> tuple[Features, Float[Array, "B D"] | None, GateAndLogit]:  # fmt: skip
        """Runs the stage's n blocks; per-block quantities lead with the block axis."""
        settings: Any = {
            "train": train, "straight_through": straight_through, "execution": execution,
        }  # fmt: skip
        first = jax.tree.map(lambda array: array[0], inputs)
        x, pooled, entry = self.entry(x, pooled, scale, first, **settings)
        entry = jax.tree.map(lambda of_block: of_block[None], entry)
        if self.num_blocks == 1:
            return x, pooled, entry
        graphdef, params, stats = nnx.split(self.body, nnx.Param, ...)

        def run_one(features: tuple, block: tuple) -> tuple[tuple, tuple]:
            x, pooled = features
            params, stats, inputs = block
            module = nnx.merge(graphdef, params, stats)
            x, pooled, gate = module(x, pooled, scale, inputs, **settings)
            return (x, pooled), (gate, nnx.state(module, nnx.BatchStat) if train else None)

        blocks = (params, stats, jax.tree.map(lambda array: array[1:], inputs))
        (x, pooled), (body, stats) = lax.scan(run_one, (x, pooled), blocks, unroll=unroll)
        if train:
            nnx.update(self.body, stats)
        return x, pooled, jax.tree.map(lambda *parts: jnp.concatenate(parts), entry, body)
