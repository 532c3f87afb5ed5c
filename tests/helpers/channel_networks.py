"""Small channel-gated networks, and one that has only the channels which gates open."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helpers.resnet_reference import Reference
from urnet_jax.nets.channels.architecture import ChannelGated


@dataclasses.dataclass(frozen=True)
class TwoStages(ChannelGated):
    @property
    def stages(self) -> Any:
        return super().stages[:2]


ARCHS = {
    "basic": ChannelGated("cifar", 14, 5, image_size=8, width=4, shortcut="A", gate_group=2),
    "single": ChannelGated("cifar", 8, 5, image_size=9, width=4, shortcut="B", gate_hidden=3),
    "one cost": ChannelGated("cifar", 8, 5, image_size=8, width=4, gate_scale=False),
    "bottleneck": TwoStages("imagenet", 50, 5, image_size=16, width=4, shortcut="B", gate_group=2),
    "both": ChannelGated("cifar", 14, 5, image_size=8, width=4, gate_group=2, gate_blocks=True),
    "both, bottleneck": TwoStages(
        "imagenet", 50, 5, image_size=16, width=4, shortcut="B", gate_group=2, gate_blocks=True
    ),
}


class Pruned(Reference):
    """Of one image, whose closed channels are not there at all."""

    def __call__(self, image: Any, scale: Any, gates: Any = None) -> tuple[Any, Any]:
        """Logits and gates, which may be given."""
        arch, stride = self.arch, 1 if self.arch.family == "cifar" else 2
        x = jnp.maximum(self.norm(self.conv(image, "conv1", stride), "bn1"), 0)
        if arch.family == "imagenet":
            around = ((0, 0), (1, 1), (1, 1), (0, 0))
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)
        used, start = [], 0
        for i, spec in enumerate(arch.stages, start=1):
            for n in range(spec.num_blocks):
                name, stop = f"stage{i}/{n}", start + arch.gates_of_block(spec)
                logits = self.scores(x, scale, f"{name}/gate")
                own = np.asarray(logits >= 0)[0] if gates is None else gates[start:stop]
                own = self.left(own)
                entry = n == 0 and spec.changes_shape
                y = self.padded(x, name, spec) if entry else x
                f = self.open_residual(x, name, spec, spec.stride if n == 0 else 1, own)
                x = jnp.maximum(y if f is None else y + f, 0)
                used.append(own)
                start = stop
        return self.linear(jnp.mean(x, (1, 2)), "fc"), np.concatenate(used)

    def padded(self, x: Any, name: str, spec: Any) -> Any:
        if self.arch.shortcut == "B":
            return self.shortcut(x, name, spec)
        extra = spec.out_channels - spec.in_channels
        around = [(0, 0)] * 3 + [(extra // 2, extra - extra // 2)]
        return jnp.pad(x[:, ::2, ::2], around)

    def scores(self, x: Any, scale: Any, name: str) -> Any:
        seen = jnp.mean(x, (1, 2))
        if self.arch.gate_scale:
            seen = jnp.concatenate([seen, jnp.asarray(scale)[:, None]], axis=1)
        hidden = self.norm(seen @ self.params[f"{name}/fc1/kernel"], f"{name}/bn")
        hidden = jnp.maximum(hidden, 0)
        whole = [self.linear(hidden, f"{name}/block")] if self.arch.gate_blocks else []
        return jnp.concatenate([*whole, self.linear(hidden, f"{name}/fc2")], axis=1)

    def left(self, gates: Any) -> Any:
        """Gates without those that another one leaves nothing."""
        if not self.arch.gate_blocks:
            return gates
        closed = not gates[0] or not gates[1:].any()
        return np.zeros_like(gates) if closed else gates

    def open_residual(self, x: Any, name: str, spec: Any, stride: int, gates: Any) -> Any:
        strides = [stride, 1] if spec.block == "basic" else [1, stride, 1]
        channels = np.asarray(gates)[self.arch.gate_blocks :]
        layers = [
            np.flatnonzero(np.repeat(g, self.arch.gate_group))
            for g in np.split(channels, len(strides) - 1)
        ]
        if not layers[-1].size:
            return None
        kept: Any = [None, *layers, None]
        for i, s in enumerate(strides, start=1):
            kernel = self.params[f"{name}/conv{i}/kernel"]
            come, go = (slice(None) if k is None else k for k in (kept[i - 1], kept[i]))
            x = x if s == 0 else self.some(x, kernel[:, :, come][..., go], s)
            x = self.norm_of(x, f"{name}/bn{i}", go)
            x = jnp.maximum(x, 0) if i < len(strides) else x
        return x

    def some(self, x: Any, kernel: Any, stride: int) -> Any:
        around = kernel.shape[0] // 2
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(around, around)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    def norm_of(self, x: Any, name: str, which: Any) -> Any:
        mean, var = (self.stats[f"{name}/{kind}"][which] for kind in ("mean", "var"))
        factor = jax.lax.rsqrt(var + 1e-5) * self.params[f"{name}/scale"][which]
        return (x - mean) * factor + self.params[f"{name}/bias"][which]
