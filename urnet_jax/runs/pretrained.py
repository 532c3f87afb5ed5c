"""PyTorch checkpoints into a plain or gated network, and a network into one that PyTorch loads.

    python -m urnet_jax export --workdir=runs/mine --output=mine.safetensors

Known are the names of torchvision and timm (`conv1`, `layer1.0.downsample.0`, `fc`) and those of
the usual CIFAR ResNets (`shortcut` and `linear`), with and without a leading `module.`. The names
and shapes show the architecture but for two things, which the config alone says: whether a
shortcut without parameters is `A` or `pool`, and that the 3x3 convolution of a bottleneck has the
stride, as in torchvision and timm.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx, traverse_util

from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.errors import UserError
from urnet_jax.nets.architecture import IMAGENET_BLOCKS, Architecture
from urnet_jax.nets.resnet import ResNet
from urnet_jax.runs.load import load_network
from urnet_jax.runs.torch_files import Tensors, check_output, read_state_dict, write_state_dict
from urnet_jax.train import state as state_lib
from urnet_jax.train.state import Tree

# The key is the number of axes: HWIO and [in, out] here, OIHW and [out, in] there.
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}

_TORCH_NAMES = {
    "entry": "0",
    "downsample_conv": "downsample.0",
    "downsample_bn": "downsample.1",
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor lies here.

    Attributes:
      path: of the leaf, in params or batch_stats; no path is in both.
      block: the tensor's position in a leaf that stacks the blocks of a body, else None.
      shape: of the tensor, in PyTorch's order.
    """

    path: tuple[str, ...]
    block: int | None
    shape: tuple[int, ...]


@functools.cache
def _places(arch: Architecture) -> dict[str, _Place]:
    """Every tensor of the network by torchvision's name; gates are `layer1.0.gate.fc1.weight`.

    External ones begin with `gate.`, as `gate.network.conv1.weight` and `gate.fc2.weight`.
    """
    abstract = nnx.eval_shape(lambda: ResNet(arch, rngs=nnx.Rngs(0)))
    variables = nnx.to_pure_dict(nnx.state(abstract, nnx.Any(nnx.Param, nnx.BatchStat)))
    leaves: Any = traverse_util.flatten_dict(variables)
    places = {}
    for path, leaf in leaves.items():
        stacked = "body" in path
        shape = leaf.shape[1:] if stacked else leaf.shape
        shape = tuple(shape[axis] for axis in _TO_TORCH[len(shape)])
        for block in range(leaf.shape[0]) if stacked else [None]:
            name = ".".join(_TORCH_NAMES.get(key) or key for key in path)
            name = name.replace("body", str((block or 0) + 1)).replace("stage", "layer")
            places[name] = _Place(path, block, shape)
    return places


def import_state_dict(
    tensors: Tensors, arch: Architecture, params: Tree, batch_stats: Tree,
    source: epath.PathLike = "the state dict",
) -> tuple[Tree, Tree]:  # fmt: skip
    """The network's params and batch_stats with the weights of a state dict.

    Args:
      tensors: of a plain network, or of a gated one by `export_state_dict`.
      arch: the network's.
      params: its present ones. A gated network keeps their gates where `tensors` has none.
      batch_stats: its present ones.
      source: what errors call `tensors`.

    Raises:
      UserError: see `check`.
    """
    names = check(tensors, arch, source)
    found: dict[tuple[str, ...], list[np.ndarray]] = {}
    for name, place in _places(arch).items():
        if name in names:
            tensor = tensors[names[name]]
            array = np.transpose(tensor, _FROM_TORCH[tensor.ndim])
            found.setdefault(place.path, []).append(array)

    def filled(tree: Tree) -> Tree:
        leaves: Any = traverse_util.flatten_dict(tree)
        for path in leaves.keys() & found.keys():
            value = np.stack(found[path]) if "body" in path else found[path][0]
            # A copy: training donates its state, and the tensors are the caller's.
            leaves[path] = jnp.array(value, jnp.float32)
        return traverse_util.unflatten_dict(leaves)

    return filled(params), filled(batch_stats)


def export_state_dict(params: Tree, batch_stats: Tree, arch: Architecture) -> Tensors:
    """The network's state dict, gates included.

    It has the names of torchvision, or for a `cifar` network those of the usual CIFAR ResNets.
    PyTorch loads that of a plain network with `strict=True`, and counts its batches anew; that of a
    gated one, whose gates are tensors too, with `strict=False`.
    """
    leaves = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(batch_stats)
    tensors = {}
    for name, place in _places(arch).items():
        array = np.asarray(leaves[place.path])
        array = array if place.block is None else array[place.block]
        if arch.family == "cifar":
            name = re.sub(r"^fc\.", "linear.", name.replace(".downsample.", ".shortcut."))
        tensors[name] = np.ascontiguousarray(np.transpose(array, _TO_TORCH[array.ndim]))
    return tensors


def check(tensors: Tensors, arch: Architecture, source: epath.PathLike) -> dict[str, str]:
    """Accounts for every tensor of a state dict; counts of batches are known and not used.

    Returns:
      The name in `tensors` by torchvision's name.

    Raises:
      UserError: `tensors` is no ResNet or another one than `arch`, lacks tensors (some gates, for
        example), has unknown ones, or one of another shape.
    """
    names: dict[str, str] = {}
    for name in tensors:
        known = re.sub(r"^linear\.", "fc.", name.removeprefix("module."))
        known = known.replace(".shortcut.", ".downsample.")
        if known in names:
            raise UserError(f"{source} holds both {names[known]} and {name}; drop one of them.")
        names[known] = name
    shapes = {known: tuple(tensors[name].shape) for known, name in names.items()}
    held = _architecture(shapes, source)
    _check_architecture(held, arch, source)
    places = _places(arch)
    counts = {name.replace("running_mean", "num_batches_tracked") for name in places}
    missing = sorted(n for n in places if n not in names and (held["gated"] or not _of_gate(n)))
    unknown = [names[n] for n in names if n not in places and n not in counts]
    if missing or unknown:
        said = [f"lacks {_listed(missing)}"] if missing else []
        said += [f"holds {_listed(unknown)}, unknown to that network"] if unknown else []
        raise UserError(
            f"{source} is not a whole {_describe(held)}: it {' and '.join(said)}; name a "
            "checkpoint of that network and nothing else."
        )
    for name in sorted(places.keys() & names.keys()):
        tensor, shape = tensors[names[name]], places[name].shape
        if tensor.shape != shape or not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(
                f"{source} holds {names[name]} as {tensor.dtype} of shape {tensor.shape}; expected "
                f"floating-point numbers of shape {shape}: name a checkpoint of such a network."
            )
    return names


def _architecture(shapes: dict[str, tuple[int, ...]], source: epath.PathLike) -> dict[str, Any]:
    """The fields of `Architecture` that names and shapes show.

    Raises:
      UserError: this is no ResNet, or one of another kind.
    """
    stem, blocks = shapes.get("conv1.weight", ()), _blocks_per_stage(shapes)
    if len(stem) != 4 or not blocks:
        raise UserError(
            f"{source} holds no ResNet by the names of torchvision, timm or the CIFAR ResNets: "
            f"expected conv1.weight, layer1.0.conv1.weight and so on, and it holds "
            f"{_listed(list(shapes))}."
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
    held["gated"] = any(map(_of_gate, shapes))
    if held["gated"]:
        external = any(name.startswith("gate.") for name in shapes)
        held["gate_network"] = "external" if external else "block"
    if shapes.get("fc.weight"):
        held["num_classes"] = shapes["fc.weight"][0]
    return held


def _of_gate(name: str) -> bool:
    """Whether a tensor is of a block's gate, or of external ones."""
    return "gate" in name.split(".")


def _blocks_per_stage(names: Iterable[str]) -> tuple[int, ...]:
    found = [match for name in names if (match := re.match(r"layer(\d+)\.(\d+)\.", name))]
    per_stage: dict[int, set[str]] = {}
    for match in found:
        per_stage.setdefault(int(match[1]), set()).add(match[2])
    return tuple(len(blocks) for _, blocks in sorted(per_stage.items()))


def _check_architecture(held: dict[str, Any], arch: Architecture, source: epath.PathLike) -> None:
    asked = {name: getattr(arch, name) for name in held}
    if asked["shortcut"] == "pool":  # Without parameters, as A is.
        asked["shortcut"] = "A"
    if not held["gated"]:  # Its gates begin anew.
        asked["gated"] = False
    differing = [f"{n} {asked[n]}, not {held[n]}" for n in held if asked[n] != held[n]]
    if differing:
        raise UserError(
            f"{source} holds a {_describe(held)}, and the config asks for another network "
            f"({', '.join(differing)}): ask for what it holds, or name another file."
        )


def _describe(held: dict[str, Any]) -> str:
    kind = "gated" if held["gated"] else "plain"
    classes = f" for {held['num_classes']} classes" if "num_classes" in held else ""
    return f"{kind} ResNet-{held['depth']} ({held['family']}, width {held['width']}){classes}"


def _listed(names: Sequence[str]) -> str:
    """For people; of very many the first twenty: 'fc.bias, ..., fc.weight and 4 more'."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


def initial_variables(config: Config) -> tuple[Tree, Tree]:
    """The params and batch_stats that a run begins with: `init.from`'s, else random ones.

    Raises:
      UserError: the file cannot be read, or see `check`.
    """
    params, batch_stats = state_lib.init_variables(config)
    if source := config.init["from"]:
        arch, tensors = config_lib.architecture(config), read_state_dict(source)
        return import_state_dict(tensors, arch, params, batch_stats, source)
    return params, batch_stats


def export_workdir(
    workdir: epath.PathLike, output: epath.PathLike, which: Literal["newest", "best"] | int
) -> None:
    """Writes the network of a run's checkpoint, averaged if it is, as a state dict.

    Args:
      workdir: of the run.
      output: the file, `.safetensors`, `.pt`, `.pth` or `.th`.
      which: as for `load.load_network`.

    Raises:
      UserError: the workdir holds no such checkpoint, or `output` cannot be written.
    """
    check_output(output)
    meta, params, batch_stats = load_network(workdir, which)
    arch = config_lib.architecture(meta.config)
    tensors = export_state_dict(params, batch_stats, arch)
    write_state_dict(tensors, output)
    print(f"{arch.describe()}, step {meta.step} ({meta.phase}): {len(tensors)} tensors")
    print(output)
