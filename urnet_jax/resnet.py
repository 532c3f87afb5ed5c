"""Residual networks, plain and gated: one class.

    logits, gates = model(images, scale)        # [B, K], [B, N]: N blocks in network order

A stage is an entry block and a body of identical blocks whose parameters are stacked along a new
first axis, so that one compiled block serves the whole body.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from urnet_jax.architecture import Architecture, Execution, StageSpec
from urnet_jax.convolution import conv_general_dilated
from urnet_jax.execution import choose, run_block
from urnet_jax.gates import ConditionalGate, activate, pool

Features = Float[Array, "B H W C"]
GateAndLogit = tuple[Float[Array, "*n B"], Float[Array, "*n B"] | None]


def _conv(
    inputs: int, outputs: int, size: int, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Conv:
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


def _norm(channels: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
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
            setattr(self, f"conv{i + 1}", _conv(c_in, c_out, size, stride, dtype, rngs))
            setattr(self, f"bn{i + 1}", _norm(c_out, dtype, rngs))
        if self.shortcut == "B":
            self.downsample_conv = _conv(inputs, self.outputs, 1, self.stride, dtype, rngs)
            self.downsample_bn = _norm(self.outputs, dtype, rngs)
        if arch.gated:
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
        use_sigmoid: Bool[Array, " B"], gate: Float[Array, " B"] | None, *, train: bool,
        execution: Execution,
    ) -> tuple[Features, Float[Array, "B D"] | None, GateAndLogit]:  # fmt: skip
        """The block's output, its means over positions, and the gate that weighed F.

        A `gate` that is given is used as is, and has no logit. Means are only given and returned
        where the execution carries them from block to block.
        """
        logit = None
        if gate is None:
            logit = self.gate(x, scale) if pooled is None else self.gate.score(pooled, scale)
            gate = activate(logit, use_sigmoid)
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
        use_sigmoid: Bool[Array, "n B"], gates: Float[Array, "n B"] | None, *, train: bool,
        unroll: bool, execution: Execution,
    ) -> tuple[Features, Float[Array, "B D"] | None, GateAndLogit]:  # fmt: skip
        """Runs the stage's n blocks; per-block quantities lead with the block axis."""
        first = None if gates is None else gates[0]
        settings: Any = {"train": train, "execution": execution}
        x, pooled, entry = self.entry(x, pooled, scale, use_sigmoid[0], first, **settings)
        entry = jax.tree.map(lambda of_block: of_block[None], entry)
        if self.num_blocks == 1:
            return x, pooled, entry
        graphdef, params, stats = nnx.split(self.body, nnx.Param, ...)

        def run_one(features: tuple, block: tuple) -> tuple[tuple, tuple]:
            x, pooled = features
            params, stats, use_sigmoid, gate = block
            module = nnx.merge(graphdef, params, stats)
            x, pooled, gate = module(x, pooled, scale, use_sigmoid, gate, **settings)
            return (x, pooled), (gate, nnx.state(module, nnx.BatchStat) if train else None)

        rest = None if gates is None else gates[1:]
        blocks = (params, stats, use_sigmoid[1:], rest)
        (x, pooled), (body, stats) = lax.scan(run_one, (x, pooled), blocks, unroll=unroll)
        if train:
            nnx.update(self.body, stats)
        return x, pooled, jax.tree.map(lambda *parts: jnp.concatenate(parts), entry, body)


class ResNet(nnx.Module):
    """A plain or gated residual network (He et al. 2016; URNet)."""

    def __init__(
        self, arch: Architecture, *, dtype: jnp.dtype | str = jnp.float32, gate_bias: float = 0.5,
        rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        """Builds `arch`; computes in `dtype` with float32 parameters and statistics."""
        dtype = jnp.dtype(dtype)
        self.arch, self.dtype = arch, dtype
        stem = (3, 1) if arch.family == "cifar" else (7, 2)
        self.conv1 = _conv(arch.image_channels, arch.width, *stem, dtype, rngs)
        self.bn1 = _norm(arch.width, dtype, rngs)
        for i, spec in enumerate(arch.stages):
            stage = Stage(arch, spec, dtype=dtype, gate_bias=gate_bias, rngs=rngs)
            setattr(self, f"stage{i + 1}", stage)
        self.fc = nnx.Linear(arch.stages[-1].out_channels, arch.num_classes, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        scale: Float[Array, " B"],
        *,
        train: bool = False,
        use_sigmoid: Bool[Array, "B N"] | None = None,
        gates: Float[Array, "B N"] | None = None,
        unroll: bool = False,
        execution: Execution = "dense",
        with_gate_logits: bool = False,
    ) -> tuple[Float[Array, "B K"], ...]:
        """Logits and the gates that made them.

        Args:
          images: normalised images, NHWC.
          scale: S in [0, 1], one per sample. Ignored by a plain network.
          train: BatchNorm uses the batch's statistics and updates its running ones.
          use_sigmoid: where a gate is a sigmoid, as `gates.draw_sigmoid` draws it in training;
            elsewhere, and by default everywhere, it is a hard step.
          gates: given, these are used instead of the network's own: 1 runs a block, 0 skips it.
          unroll: blocks of a stage one after another instead of in a loop: compiles longer; the
            backward pass is many times faster on CPU.
          execution: how gated blocks are run, see `architecture.Execution`; training is `dense`.
          with_gate_logits: also returns what the gates were made of.

        Returns:
          Float32 logits and float32 gates, N blocks in network order; a plain network's are 1. With
          `with_gate_logits` the gates' logits [B, N] too: a step opens a gate at 0 and above.

        Raises:
          ValueError: `scale` is not one S per image, or `execution` is unknown or not for training;
            or gates that the network did not compute are asked for their logits.
        """
        batch, num_blocks = images.shape[0], self.arch.num_blocks
        if train and execution not in ("auto", "dense"):
            raise ValueError(f"execution is {execution!r} in training, which needs 'dense'.")
        execution = "dense" if train else choose(execution, batch)
        if jnp.shape(scale) != (batch,):
            raise ValueError(
                f"scale has shape {jnp.shape(scale)}; expected one S per image, ({batch},)."
            )
        if gates is None and not self.arch.gated:
            gates = jnp.ones((batch, num_blocks), jnp.float32)
        if with_gate_logits and gates is not None:
            raise ValueError("Gates that are given, as a plain network's are, have no logits.")
        if use_sigmoid is None:
            use_sigmoid = jnp.zeros((batch, num_blocks), bool)

        x = self.bn1(self.conv1(images.astype(self.dtype)), use_running_average=not train)
        x = nnx.relu(x)
        if self.arch.family == "imagenet":
            padding: Any = ((1, 1), (1, 1))
            x = nnx.max_pool(x, (3, 3), (2, 2), padding=padding)
        pooled = pool(x) if gates is None and execution != "dense" else None
        used, start = [], 0
        for i, spec in enumerate(self.arch.stages):
            part = slice(start, start + spec.num_blocks)
            start = part.stop
            given = None if gates is None else gates[:, part].T
            stage = getattr(self, f"stage{i + 1}")
            x, pooled, of_stage = stage(
                x, pooled, scale, use_sigmoid[:, part].T, given,
                train=train, unroll=unroll, execution=execution,
            )  # fmt: skip
            used.append(of_stage)
        logits = self.fc(pool(x) if pooled is None else pooled)
        used = jax.tree.map(lambda *parts: jnp.concatenate(parts).T.astype(jnp.float32), *used)
        return logits, *(used if with_gate_logits else used[:1])
