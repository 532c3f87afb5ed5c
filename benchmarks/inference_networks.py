"""The networks that `inference.py`, `channels.py` and `dense.py` time."""

from typing import Any

from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.channels.architecture import ChannelGated
from urnet_jax.nets.dense.architecture import ChannelSegmenter, Segmenter

NETWORKS = {
    "resnet20": Architecture("cifar", 20, 10, 32, gated=False),
    "resnet110": Architecture("cifar", 110, 10, 32, gated=False),
    "resnet18": Architecture("imagenet", 18, 1000, 224, width=64, shortcut="B", gated=False),
    "resnet50": Architecture("imagenet", 50, 1000, 224, width=64, shortcut="B", gated=False),
    "resnet101": Architecture("imagenet", 101, 1000, 224, width=64, shortcut="B", gated=False),
}

GROUPS = (1, 16, 64)
"""Channels of a gate."""

CHANNEL_NETWORKS = {
    f"{name} channels/{group}": ChannelGated(
        plain.family, plain.depth, plain.num_classes, plain.image_size, width=plain.width,
        shortcut=plain.shortcut, gate_group=group, gate_scale=False,
    )
    for name, plain in NETWORKS.items()
    for group in GROUPS
    if plain.width % group == 0
}  # fmt: skip
"""Those whose gates switch groups of so many channels; their own are costed and not run."""

_STREETS: dict[str, Any] = {
    "family": "imagenet", "depth": 18, "num_classes": 11, "image_size": (180, 240), "width": 64,
    "shortcut": "B",
}  # fmt: skip

DENSE_NETWORKS = {
    "pspnet18 plain": Segmenter(**_STREETS, gated=False),
    "pspnet18 channels/64": ChannelSegmenter(**_STREETS, gate_group=64),
    "pspnet18 both/64": ChannelSegmenter(**_STREETS, gate_group=64, gate_blocks=True),
}
"""Dense prediction on a dilated ResNet-18, for images of 240x180; in `plain` units are blocks, and
gates of blocks are neither costed nor run."""


def found(name: str) -> Any:
    """The network of that name."""
    return (NETWORKS | CHANNEL_NETWORKS | DENSE_NETWORKS)[name]
