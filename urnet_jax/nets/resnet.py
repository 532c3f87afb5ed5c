"""Residual networks, plain and gated: one class.

output = ResNet(arch, rngs=nnx.Rngs(0))(images, GateInputs(scale))
output.prediction, output.gates  # [B, K], [B, G]: in network order
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from urnet_jax.nets.blocks import Block, Stage
from urnet_jax.nets.contract import Features, GateInputs, Output, Summary
from urnet_jax.nets.execution import choose
from urnet_jax.nets.gates import ExternalGates, decide, prior
from urnet_jax.nets.layers import conv, norm, pool, running
from urnet_jax.nets.mode import Build, Mode


class ResNet(nnx.Module):
    """A plain or gated residual network (He et al. 2016; URNet)."""

    block: type[Block] = Block

    def __init__(self, arch: Any, build: Build = Build(), *, rngs: nnx.Rngs) -> None:
        """Builds an `Architecture`, or what has its properties; parameters are float32."""
        self.arch, self.dtype = arch, jnp.dtype(build.dtype)
        self.conv1 = conv(arch.stem, build, rngs)
        self.bn1 = norm(arch.width, build, rngs)
        for i, spec in enumerate(arch.stages, 1):
            setattr(self, f"stage{i}", Stage(arch, spec, build, block=self.block, rngs=rngs))
        self._make_head(build, rngs)
        if beside := arch.external:
            network = ResNet(beside, build, rngs=rngs)
            self.gate = ExternalGates(
                network, beside.num_classes, arch.num_gates, bias=build.gate_bias,
                silent=arch.gate_prior > 0, rngs=rngs,
            )  # fmt: skip

    def _make_head(self, build: Build, rngs: nnx.Rngs) -> None:
        self.fc = nnx.Linear(*self.arch.head, precision=build.precision, rngs=rngs)

    def __call__(
        self, images: Float[Array, "B H W C"], inputs: GateInputs, mode: Mode = Mode()
    ) -> Output:
        """The logits of the classes and the gates that led to them.

        Args:
          images: normalised images.
          inputs: the scale, one S per image, which a plain network ignores, and what else decides
            gates.
          mode: how the network is run.

        Raises:
          ValueError: the scale is not one S per image.
        """
        batch = images.shape[0]
        if jnp.shape(inputs.scale) != (batch,):
            raise ValueError(
                f"scale has shape {jnp.shape(inputs.scale)}; expected one S per image, ({batch},)."
            )
        mode = choose(self.arch, mode, batch)
        logits = None
        if inputs.given is None and self.arch.gated and self.arch.gate_prior:
            inputs = inputs.shifted(prior(self.arch, inputs.scale))
        if inputs.given is None and self.arch.external:
            logits = self.gate(images, inputs.scale, mode)
            logits = logits if inputs.offset is None else logits + inputs.offset
            given = decide(logits, inputs, mode)
            inputs = GateInputs(inputs.scale, given=given)
        elif inputs.given is None and not self.arch.gated:
            inputs = inputs._replace(given=jnp.ones((batch, self.arch.num_gates), jnp.float32))
        features, summary, gates, own = self._run(self._stem(images, mode), inputs, mode)
        prediction, auxiliary = self._answer(features, summary, images.shape[1:3], mode)
        logits = own if logits is None else logits
        return Output(prediction, gates, logits, auxiliary=auxiliary)

    def _stem(self, images: Float[Array, "B H W C"], mode: Mode) -> Features:
        x = self.bn1(self.conv1(images.astype(self.dtype)), use_running_average=running(mode))
        x = nnx.relu(x)
        if self.arch.family == "imagenet":
            padding: Any = ((1, 1), (1, 1))
            x = nnx.max_pool(x, (3, 3), (2, 2), padding=padding)
        return x

    def _answer(
        self, features: list[Features], summary: Summary | None, size: tuple[int, ...], mode: Mode
    ) -> tuple[Array, Array | None]:
        """The prediction, and what a head on the way says, from what each stage gave.

        `summary` is that of the last features, if it is known; `size` is the images' in pixels.
        """
        del size, mode
        return self.fc(pool(features[-1]) if summary is None else summary), None

    def _run(
        self, x: Features, inputs: GateInputs, mode: Mode
    ) -> tuple[list[Features], Summary | None, Float[Array, "B G"], Float[Array, "B G"] | None]:
        """What each stage gave, the last summary, gates, and the logits of those not given."""
        summary = pool(x) if inputs.given is None and mode.execution != "dense" else None
        features, used, start = [], [], 0
        for i, spec in enumerate(self.arch.stages, 1):
            stop = start + spec.num_blocks * self.arch.gates_of_block(spec)
            stage = getattr(self, f"stage{i}")
            x, summary, of_stage = stage(x, summary, inputs.columns(start, stop), mode)
            features.append(x)
            used.append(of_stage)
            start = stop
        join: Any = lambda *parts: jnp.concatenate(parts, axis=1).astype(jnp.float32)  # noqa: E731
        return features, summary, *jax.tree.map(join, *used)
