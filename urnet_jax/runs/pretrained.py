"""PyTorch checkpoints into a plain or gated network, and a network into one that PyTorch loads.

    python -m urnet_jax export --workdir=runs/mine --output=mine.safetensors

`tensor_names` says what the tensors of any network are called there, `resnet_names` which names of
residual networks are known.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.errors import UserError
from urnet_jax.nets import network
from urnet_jax.nets.mode import Build
from urnet_jax.nets.network import Tree
from urnet_jax.nets.residual import Residual
from urnet_jax.runs.resnet_names import ResNetNames
from urnet_jax.runs.tensor_names import Names, Path, Place, TensorNames, listed
from urnet_jax.runs.torch_files import Tensors, read_state_dict


def import_state_dict(
    tensors: Tensors, arch: Any, params: Tree, batch_stats: Tree,
    source: epath.PathLike = "the state dict", *, new_head: bool = False,
) -> tuple[Tree, Tree]:  # fmt: skip
    """The network's params and batch_stats with the weights of a state dict.

    Args:
      tensors: of a plain network, or of a gated one by `export_state_dict`.
      arch: the network's description.
      params: its present ones. A gated network keeps their gates where `tensors` has none.
      batch_stats: its present ones.
      source: what errors call `tensors`.
      new_head: the network keeps its own last layer, for other classes than those of `tensors`.

    Raises:
      UserError: see `check`.
    """
    names = check(tensors, arch, source, new_head=new_head)
    found: dict[Path, list[np.ndarray]] = {}
    stacked = set()
    for name, place in _places(arch).items():
        if name in names:
            array = np.transpose(tensors[names[name]], np.argsort(place.axes))
            found.setdefault(place.path, []).append(array)
            if place.unit is not None:
                stacked.add(place.path)

    def filled(tree: Tree) -> Tree:
        leaves: Any = traverse_util.flatten_dict(tree)
        for path in leaves.keys() & found.keys():
            value = np.stack(found[path]) if path in stacked else found[path][0]
            # A copy: training donates its state, and the tensors are the caller's.
            leaves[path] = jnp.array(value, jnp.float32)
        return traverse_util.unflatten_dict(leaves)

    return filled(params), filled(batch_stats)


def export_state_dict(
    params: Tree, batch_stats: Tree, arch: Any, like: Names = "torchvision", *, gates: bool = True
) -> Tensors:
    """The network's state dict.

    A residual network has the names of torchvision, or of the `cifar` family those of the usual
    CIFAR ResNets. PyTorch loads that of a plain network with `strict=True`, and counts its batches
    anew; that of a gated one, whose gates are tensors too, with `strict=False`.

    Args:
      params: the network's.
      batch_stats: the network's.
      arch: its description.
      like: `huggingface` for the names of its `ResNetForImageClassification`.
      gates: whether its gates, if it has any, are among the tensors.
    """
    names = _names(arch)
    leaves = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(batch_stats)
    tensors = {}
    for name, place in _places(arch).items():
        if place.of_gate and not gates:
            continue
        array = np.asarray(leaves[place.path])
        array = array if place.unit is None else array[place.unit]
        tensors[names.written(name, like)] = np.ascontiguousarray(np.transpose(array, place.axes))
    return tensors


def check(
    tensors: Tensors, arch: Any, source: epath.PathLike, *, new_head: bool = False
) -> dict[str, str]:
    """Accounts for every tensor of a state dict; counts of batches are known and not used.

    With `new_head` the last layer of `tensors` is known and not used either.

    Returns:
      The name in `tensors` by that of `TensorNames.places`.

    Raises:
      UserError: `tensors` is of another network than `arch`, lacks tensors (some gates, for
        example), has unknown ones, one of another shape, or numbers that are not finite.
    """
    if not tensors:
        raise UserError(f"{source} holds no tensors; name a file of weights.")
    convention, places = _names(arch), _places(arch)
    names: dict[str, str] = {}
    for name in tensors:
        known = convention.known(name)
        if new_head and convention.is_head(known):
            continue
        if known in names:
            raise UserError(f"{source} holds both {names[known]} and {name}; drop one of them.")
        names[known] = name
    shapes = {known: tuple(tensors[name].shape) for known, name in names.items()}
    described = convention.check_kind(shapes, source)
    if new_head:
        places = {name: place for name, place in places.items() if not convention.is_head(name)}
    counts = {name.replace("running_mean", "num_batches_tracked") for name in places}
    gated = any(places[name].of_gate for name in names if name in places)
    needed = {n: p for n, p in places.items() if not convention.is_optional(n)}
    missing = [n for n, p in needed.items() if n not in names and (gated or not p.of_gate)]
    known = {*places, *counts}
    unknown = [names[n] for n in names if n not in known and not convention.is_optional(n)]
    if missing or unknown:
        said = [f"lacks {listed(missing)}"] if missing else []
        said += [f"holds {listed(unknown)}, unknown to that network"] if unknown else []
        lacks_heads = {*missing} == {name for name in needed if convention.is_head(name)}
        raise UserError(
            f"{source} is not a whole {described}: it {' and '.join(said)}; name a checkpoint of "
            "that network and nothing else"
            + (", or set init.head to 'new' to begin with a new head." if lacks_heads else ".")
        )
    used = {names[name]: places[name] for name in sorted(places.keys() & names.keys())}
    _check_numbers(tensors, used, source)
    return names


def _check_numbers(tensors: Tensors, used: dict[str, Place], source: epath.PathLike) -> None:
    for name, place in used.items():
        tensor = tensors[name]
        if tensor.shape != place.shape or not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(
                f"{source} holds {name} as {tensor.dtype} of shape {tensor.shape}; expected "
                f"floating-point numbers of shape {place.shape}: name a checkpoint of such a "
                "network."
            )
    broken = [name for name in used if not np.isfinite(tensors[name]).all()]
    if broken:
        raise UserError(
            f"{source} holds NaN or infinite numbers in {len(broken)} of {len(used)} tensors, the "
            f"first of them {broken[0]}: name a checkpoint from before training diverged."
        )


@functools.cache
def _places(arch: Any) -> dict[str, Place]:
    leaves: Any = {}
    for tree in network.abstract_variables(arch, Build()):
        leaves |= traverse_util.flatten_dict(tree)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    return _names(arch).places(shapes, network.gate_paths(arch, Build()))


def _names(arch: Any) -> TensorNames:
    return ResNetNames(arch) if isinstance(arch, Residual) else TensorNames(arch)


def initial_variables(config: Config) -> tuple[Tree, Tree]:
    """The params and batch_stats that a run begins with: `init.from`'s, else random ones.

    Raises:
      UserError: the file cannot be read, or see `check`.
    """
    params, batch_stats = network.init_variables(*config_lib.network(config), config.seed)
    if source := config.init["from"]:
        arch, tensors = config_lib.architecture(config), read_state_dict(source)
        new_head = config.init.head == "new"
        return import_state_dict(tensors, arch, params, batch_stats, source, new_head=new_head)
    return params, batch_stats
