"""What PyTorch's residual networks call their tensors, and which network such tensors are of.

Known are the names of torchvision and timm (`conv1`, `layer1.0.downsample.0`, `fc`), those of the
usual CIFAR ResNets (`shortcut` and `linear`), with and without a leading `module.`, and those of
Hugging Face (`hugging_face_names`). The names and shapes show the architecture but for two things,
which the config alone says: whether a shortcut without parameters is `A` or `pool`, and that the
3x3 convolution of a bottleneck has the stride, as in all of these.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from urnet_jax.errors import UserError
from urnet_jax.nets.dense.architecture import Dense
from urnet_jax.nets.residual import IMAGENET_BLOCKS, Residual
from urnet_jax.runs import hugging_face_names
from urnet_jax.runs.tensor_names import Names, Path, Shape, TensorNames, listed

_KEYS = {"entry": "0", "downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}


class ResNetNames(TensorNames):
    """Torchvision's names; those of gates are `layer1.0.gate.fc1.weight`.

    Heads for dense prediction are `head.fusion.conv.weight` and so on, `auxiliary.` the one on the
    way. Channel gates have a BatchNorm beside, as `layer1.0.gate.bn.running_mean`. External gates
    begin with `gate.`, as `gate.network.conv1.weight` and `gate.fc2.weight`. A `cifar`
    network is written under the names of the usual CIFAR ResNets.
    """

    def __init__(self, arch: Residual) -> None:
        super().__init__(arch)
        self.stacked = ("body",)

    def name(self, path: Path, unit: int | None) -> str:
        keys = [_KEYS.get(key, key).replace("stage", "layer") for key in path]
        name = super().name(tuple(keys), unit)
        return name if unit is None else name.replace(f"body.{unit}", str(unit + 1))

    def known(self, name: str) -> str:
        name = hugging_face_names.to_torchvision(super().known(name))
        name = re.sub(r"^linear\.", "fc.", name)
        return name.replace(".shortcut.", ".downsample.")

    def is_head(self, name: str) -> bool:
        return name.startswith(("fc.", "head.", "auxiliary."))

    def is_optional(self, name: str) -> bool:
        return name.startswith("auxiliary.")  # That head helps training alone.

    def written(self, name: str, like: Names = "torchvision") -> str:
        if like == "huggingface" and isinstance(self.arch, Dense):
            raise UserError(
                "--names is 'huggingface', whose ResNets say one class for an image, and this is a "
                f"{self.arch.name}: write it under torchvision's names."
            )
        if like == "huggingface":
            if self.arch.family != "imagenet":
                raise UserError(
                    "--names is 'huggingface', whose ResNets begin with a 7x7 convolution, and "
                    f"this is a {self.arch.describe()}: write it under torchvision's names."
                )
            return hugging_face_names.from_torchvision(name)
        if self.arch.family != "cifar":
            return name
        return re.sub(r"^fc\.", "linear.", name.replace(".downsample.", ".shortcut."))

    def check_kind(self, shapes: Mapping[str, Shape], source: epath.PathLike) -> str:
        held = _architecture(shapes, source)
        asked = {name: getattr(self.arch, name) for name in held if hasattr(self.arch, name)}
        if asked["shortcut"] == "pool":  # Without parameters, as A is.
            asked["shortcut"] = "A"
        if not held["gated"]:  # Its gates begin anew.
            asked["gated"] = False
        differing = [f"{n} {asked[n]}, not {held[n]}" for n in asked if asked[n] != held[n]]
        of_classes = [f"num_classes {self.arch.num_classes}, not {held.get('num_classes')}"]
        if differing:
            raise UserError(
                f"{source} holds a {_describe(held)}, and the config asks for another network "
                f"({', '.join(differing)}): ask for what it holds, or name another file"
                + (", or set init.head to 'new'." if differing == of_classes else ".")
            )
        return _describe(held)


def _architecture(shapes: Mapping[str, Shape], source: epath.PathLike) -> dict[str, Any]:
    """The fields of `Architecture` or `ChannelGated` that names and shapes show.

    Raises:
      UserError: this is no ResNet, or one of another kind.
    """
    stem, blocks = shapes.get("conv1.weight", ()), _blocks_per_stage(shapes)
    if len(stem) != 4 or not blocks:
        seen = _seen(shapes)
        raise UserError(
            f"{source} holds no ResNet by the names of torchvision, timm, Hugging Face or the "
            f"CIFAR ResNets{f', but {seen}' if seen else ''}: expected conv1.weight, "
            f"layer1.0.conv1.weight and so on, and it holds {listed(shapes)}; name another file."
        )
    kind = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
    depth = None
    if stem[2:] == (3, 3) and len(blocks) == 3 and len(set(blocks)) == 1 and kind == "basic":
        family, depth = "cifar", 6 * blocks[0] + 2
    else:
        family = "imagenet"
        if stem[2:] == (7, 7):
            depth = next((d for d, b in IMAGENET_BLOCKS.items() if b == (kind, blocks)), None)
    if depth is None:
        raise UserError(
            f"{source} holds {', '.join(map(str, blocks))} {kind} blocks behind a convolution of "
            f"{stem[2]} x {stem[3]}, which is neither a CIFAR ResNet (3 x 3, three stages of as "
            "many basic blocks) nor an ImageNet one (7 x 7, four stages); name another file."
        )
    held = {"family": family, "depth": depth, "width": stem[0], "image_channels": stem[1]}
    held["shortcut"] = "B" if any(".downsample." in name for name in shapes) else "A"
    held["gated"] = any("gate" in name.split(".") for name in shapes)
    if held["gated"]:
        held |= _gates(shapes)
    for last in ("fc.weight", "head.classifier.fc.weight"):
        if shapes.get(last):
            held["num_classes"] = shapes[last][0]
    return held


def _gates(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """What names and shapes show of gates."""
    hidden, last = (shapes.get(f"layer1.0.gate.{name}.weight", ()) for name in ("bn", "fc2"))
    if hidden and last:
        layers = 2 if "layer1.0.conv3.weight" in shapes else 1
        channels, seen = shapes["layer1.0.conv1.weight"][:2]
        scale = shapes.get("layer1.0.gate.fc1.weight", (0, seen))[1] > seen
        return {"gate_network": "channels", "gate_group": channels * layers // last[0],
                "gate_blocks": "layer1.0.gate.block.weight" in shapes,
                "gate_hidden": hidden[0], "gate_scale": scale}  # fmt: skip
    external = any(name.startswith("gate.") for name in shapes)
    normed = any(".gate.norm." in name for name in shapes)
    return {"gate_network": "external" if external else "block", "gate_norm": normed}


_KINDS = (
    (r"conv1\.\d+\.weight", "one with a deep stem, of several convolutions (a ResNet-D)"),
    (r"(.*\.)?(cls_token|patch_embed\b.*|patch_embeddings\b.*)", "a vision transformer"),
    (r"(model\.)?features\..*", "a network of `features` (VGG, DenseNet, MobileNet)"),
    (r"(.*\.)?(downsample_layers|dwconv)\..*", "a ConvNeXt"),
    (r"(_blocks|blocks)\..*", "a network of `blocks` (EfficientNet and others)"),
    (r"(.*\.)?se_?(module)?\.(fc|conv)\w*\..*", "one with squeeze-and-excitation"),
)


def _seen(names: Iterable[str]) -> str:
    """For people: what kind of network the names are plainly of; empty if they do not show it."""
    names = list(names)
    return next((kind for known, kind in _KINDS if any(re.fullmatch(known, n) for n in names)), "")


def _blocks_per_stage(names: Iterable[str]) -> tuple[int, ...]:
    found = [match for name in names if (match := re.match(r"layer(\d+)\.(\d+)\.", name))]
    per_stage: dict[int, set[str]] = {}
    for match in found:
        per_stage.setdefault(int(match[1]), set()).add(match[2])
    return tuple(len(blocks) for _, blocks in sorted(per_stage.items()))


def _describe(held: Mapping[str, Any]) -> str:
    kind = "gated" if held["gated"] else "plain"
    kind = "channel-gated" if held.get("gate_network") == "channels" else kind
    classes = f" for {held['num_classes']} classes" if "num_classes" in held else ""
    return f"{kind} ResNet-{held['depth']} ({held['family']}, width {held['width']}){classes}"
