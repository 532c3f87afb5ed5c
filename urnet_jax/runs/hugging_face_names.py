"""What Hugging Face's `ResNetForImageClassification` calls the tensors of a residual network.

Each of its names has one of torchvision's, in which all else is said here.
"""

import re

_BLOCK = r"encoder\.stages\.(\d+)\.layers\.(\d+)\."

_PARTS = {"convolution": "conv", "normalization": "bn"}


def to_torchvision(name: str) -> str:
    """Torchvision's name for a tensor of that class, or of its backbone alone; others as is."""
    short = name.removeprefix("resnet.")
    if found := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", short):
        return f"{_PARTS[found[1]]}1.{found[2]}"
    if found := re.fullmatch(_BLOCK + r"layer\.(\d+)\.(convolution|normalization)\.(\w+)", short):
        stage, block, layer, part, leaf = found.groups()
        return f"layer{int(stage) + 1}.{block}.{_PARTS[part]}{int(layer) + 1}.{leaf}"
    if found := re.fullmatch(_BLOCK + r"shortcut\.(convolution|normalization)\.(\w+)", short):
        stage, block, part, leaf = found.groups()
        return f"layer{int(stage) + 1}.{block}.downsample.{int(part == 'normalization')}.{leaf}"
    if found := re.fullmatch(_BLOCK + r"gate\.(.+)", short):
        return f"layer{int(found[1]) + 1}.{found[2]}.gate.{found[3]}"
    return re.sub(r"^classifier\.1\.", "fc.", name)


def from_torchvision(name: str) -> str:
    """Undoes `to_torchvision`."""
    if found := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"resnet.embedder.embedder.{_part(found[1])}.{found[2]}"
    if found := re.fullmatch(r"layer(\d+)\.(\d+)\.(.+)", name):
        block = f"resnet.encoder.stages.{int(found[1]) - 1}.layers.{found[2]}."
        if own := re.fullmatch(r"(conv|bn)(\d)\.(\w+)", found[3]):
            return f"{block}layer.{int(own[2]) - 1}.{_part(own[1])}.{own[3]}"
        if own := re.fullmatch(r"downsample\.([01])\.(\w+)", found[3]):
            return f"{block}shortcut.{_part('bn' if own[1] == '1' else 'conv')}.{own[2]}"
        return block + found[3]
    return re.sub(r"^fc\.", "classifier.1.", name)


def _part(short: str) -> str:
    return next(part for part, own in _PARTS.items() if own == short)
