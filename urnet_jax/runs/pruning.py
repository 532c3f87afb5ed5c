"""A channel-gated network without the channels that it never uses: a smaller plain one."""

from typing import Any

import numpy as np
from jaxtyping import Bool

from urnet_jax.nets.channels.architecture import ChannelGated
from urnet_jax.runs.torch_files import Tensors


def pruned(tensors: Tensors, arch: ChannelGated, used: Bool[np.ndarray, " G"]) -> Tensors:
    """The state dict of the plain network that always runs the channels that are used.

    A layer keeps at least one channel, which gives 0 where none of them is used; a block whose last
    layer of channels is not used adds 0.

    Args:
      tensors: of `pretrained.export_state_dict`; they stay as they are.
      arch: the network's.
      used: which of its gates' channels are kept, in network order.
    """
    kept = {name: np.array(a) for name, a in tensors.items() if "gate" not in name.split(".")}
    start = 0
    for s, stage in enumerate(arch.stages, 1):
        layers = len(stage.convolutions(entry=False)) - 1
        for n in range(stage.num_blocks):
            start += arch.gate_blocks
            for layer in range(1, layers + 1):
                own = np.repeat(used[start : start + arch.groups(stage)], arch.gate_group)
                _cut(kept, f"layer{s}.{n}", layer, own, last=layer == layers)
                start += arch.groups(stage)
    return kept


def _cut(tensors: Any, block: str, layer: int, used: Bool[np.ndarray, " C"], *, last: bool) -> None:
    """Leaves the used channels between a block's convolution `layer` and the next."""
    keep = np.flatnonzero(used) if used.any() else np.array([0])
    for name in (f"{block}.conv{layer}", f"{block}.bn{layer}"):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            if (tensor := tensors.get(f"{name}.{leaf}")) is not None:
                tensors[f"{name}.{leaf}"] = np.ascontiguousarray(tensor[keep])
    following = f"{block}.conv{layer + 1}.weight"
    tensors[following] = np.ascontiguousarray(tensors[following][:, keep])
    if used.any():
        return
    silent = [layer, layer + 1] if last else [layer]
    for number in silent:
        for leaf in ("weight", "bias"):
            tensors[f"{block}.bn{number}.{leaf}"] *= 0
