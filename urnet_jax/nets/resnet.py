"""Residual networks, plain and gated: one class.

logits, gates = model(images, scale)        # [B, K], [B, N]: N blocks in network order
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from urnet_jax.nets.architecture import Architecture, Execution
from urnet_jax.nets.blocks import GateInputs, Stage, conv, norm
from urnet_jax.nets.execution import choose
from urnet_jax.nets.gates import activate, pool


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
        self.conv1 = conv(arch.image_channels, arch.width, *stem, dtype, rngs)
        self.bn1 = norm(arch.width, dtype, rngs)
        for i, spec in enumerate(arch.stages):
            stage = Stage(arch, spec, dtype=dtype, gate_bias=gate_bias, rngs=rngs)
            setattr(self, f"stage{i + 1}", stage)
        self.fc = nnx.Linear(arch.stages[-1].out_channels, arch.num_classes, rngs=rngs)
        if arch.external:
            self.gate = ExternalGates(arch, dtype=dtype, bias=gate_bias, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        scale: Float[Array, " B"],
        *,
        train: bool = False,
        train_gates: bool | None = None,
        use_sigmoid: Bool[Array, "B N"] | None = None,
        straight_through: bool = False,
        noise: Float[Array, "B N"] | None = None,
        gates: Float[Array, "B N"] | None = None,
        kept: Float[Array, "B N"] | None = None,
        unroll: bool = False,
        execution: Execution = "dense",
        with_gate_logits: bool = False,
    ) -> tuple[Float[Array, "B K"], ...]:
        """Logits and the gates that made them.

        Args:
          images: normalised images, NHWC.
          scale: S in [0, 1], one per sample. Ignored by a plain network.
          train: BatchNorm uses the batch's statistics and updates its running ones.
          train_gates: likewise that of external gates; by default as `train`.
          use_sigmoid: where a gate is a sigmoid, as `gates.draw_sigmoid` draws it in training;
            elsewhere, and by default everywhere, it is a hard step.
          straight_through: steps have the gradient of sigmoids.
          noise: added to the gates' logits, as `gates.draw_noise` draws it in training.
          gates: given, these are used instead of the network's own: 1 runs a block, 0 skips it.
          kept: what the gates are multiplied by, as `gates.draw_kept` draws it for random drop.
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
        _check_call(scale, batch, train, execution)
        execution = "dense" if train else choose(execution, batch)
        if gates is None and not self.arch.gated:
            gates = jnp.ones((batch, num_blocks), jnp.float32)
        if with_gate_logits and gates is not None:
            raise ValueError("Gates that are given, as a plain network's are, have no logits.")
        if use_sigmoid is None:
            use_sigmoid = jnp.zeros((batch, num_blocks), bool)
        external = None
        if gates is None and self.arch.external:
            train_gates = train if train_gates is None else train_gates
            external = self.gate(images, scale, train=train_gates)
            noisy = external if noise is None else external + noise
            gates = activate(noisy, use_sigmoid, straight_through)
        if gates is not None and kept is not None:
            gates = gates * kept
        inputs = jax.tree.map(jnp.transpose, GateInputs(use_sigmoid, noise, gates, kept))
        logits, used = self._run(
            images, scale, inputs,
            train=train, straight_through=straight_through, unroll=unroll, execution=execution,
        )  # fmt: skip
        if external is not None:
            used = used[0], external
        return logits, *(used if with_gate_logits else used[:1])

    def _run(
        self, images: Float[Array, "B H W C"], scale: Float[Array, " B"], inputs: GateInputs, *,
        train: bool, execution: Execution, **settings: bool,
    ) -> tuple[Float[Array, "B K"], tuple[Float[Array, "B N"], ...]]:  # fmt: skip
        """Logits, and gates (with their logits, if they were not given); `inputs` are [N, B]."""
        x = self.bn1(self.conv1(images.astype(self.dtype)), use_running_average=not train)
        x = nnx.relu(x)
        if self.arch.family == "imagenet":
            padding: Any = ((1, 1), (1, 1))
            x = nnx.max_pool(x, (3, 3), (2, 2), padding=padding)
        pooled = pool(x) if inputs.given is None and execution != "dense" else None
        used, start = [], 0
        for i, spec in enumerate(self.arch.stages):
            part = slice(start, start + spec.num_blocks)
            start = part.stop
            x, pooled, of_stage = getattr(self, f"stage{i + 1}")(
                x, pooled, scale, jax.tree.map(lambda array, part=part: array[part], inputs),
                train=train, execution=execution, **settings,
            )  # fmt: skip
            used.append(of_stage)
        logits = self.fc(pool(x) if pooled is None else pooled)
        join: Any = lambda *parts: jnp.concatenate(parts).T.astype(jnp.float32)  # noqa: E731
        return logits, jax.tree.map(join, *used)


def _check_call(scale: Float[Array, "..."], batch: int, train: bool, execution: Execution) -> None:
    if train and execution not in ("auto", "dense"):
        raise ValueError(f"execution is {execution!r} in training, which needs 'dense'.")
    if jnp.shape(scale) != (batch,):
        raise ValueError(
            f"scale has shape {jnp.shape(scale)}; expected one S per image, ({batch},)."
        )


class ExternalGates(nnx.Module):
    """Scores all blocks at once from the image and S: a ResNet-8 beside the network.

    The paper compares gates in the network with it. ResNet-8 -> linear to C / r units, to which S
    adds its own part -> ReLU -> linear to N logits; C are the channels of its last stage.
    """

    def __init__(
        self, arch: Architecture, *, dtype: jnp.dtype, bias: float, rngs: nnx.Rngs
    ) -> None:
        """For the blocks of `arch`; `bias` is the initial one of the logits."""
        if arch.external is None:
            raise ValueError(f"The {arch.describe()} has no external gates.")
        hidden = arch.external.num_classes
        self.network = ResNet(arch.external, dtype=dtype, rngs=rngs)
        self.of_scale = nnx.Linear(1, hidden, use_bias=False, precision="highest", rngs=rngs)
        self.fc2 = nnx.Linear(
            hidden, arch.num_blocks, bias_init=nnx.initializers.constant(bias),
            precision="highest", rngs=rngs,
        )  # fmt: skip

    def __call__(
        self, images: Float[Array, "B H W C"], scale: Float[Array, " B"], *, train: bool
    ) -> Float[Array, "B N"]:
        """The gates' logits."""
        seen, _ = self.network(images, scale, train=train)
        return self.fc2(nnx.relu(seen + self.of_scale(scale[:, None].astype(jnp.float32))))
