"""What PyTorch would call the variables of a network, whatever kind it is."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, TypeAlias

from urnet_jax.errors import UserError

Path: TypeAlias = tuple[str, ...]
Shape: TypeAlias = tuple[int, ...]

Names = Literal["torchvision", "huggingface"]
"""Whose names a file is written under; those of CIFAR ResNets count as torchvision's."""

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor lies here.

    Attributes:
      path: of the leaf, in params or batch_stats; no path is in both.
      unit: the tensor's position in a leaf that stacks those of equal units, else None.
      axes: the leaf's axes, less that of the stack, in the tensor's order.
      shape: of the tensor.
      of_gate: whether it is part of a gate.
    """

    path: Path
    unit: int | None
    axes: tuple[int, ...]
    shape: Shape
    of_gate: bool


class TensorNames:
    """Names by the variables' paths, as `head.weight`, which serve every kind of network.

    Where a network stacks the variables of equal units, its description says with a tuple `stacked`
    of names in paths where stacks begin: with ("body",), `body/conv/kernel` of n units becomes
    `body.0.conv.weight` to `body.n-1.conv.weight`.
    """

    def __init__(self, arch: Any) -> None:
        """Of the network with the description `arch`."""
        self.arch = arch
        self.stacked: tuple[str, ...] = getattr(arch, "stacked", ())

    def places(self, shapes: Mapping[Path, Shape], of_gates: Collection[Path]) -> dict[str, Place]:
        """Where each tensor of the network lies, by its name.

        Args:
          shapes: of the network's params and batch_stats, by their paths.
          of_gates: the paths of what gates are made of.
        """
        places: dict[str, Place] = {}
        for path, whole in shapes.items():
            stacked = any(key in self.stacked for key in path)
            shape = whole[1:] if stacked else whole
            axes = _axes(path, len(shape))
            shape = tuple(shape[axis] for axis in axes)
            for unit in range(whole[0]) if stacked else [None]:
                name = self.name(path, unit)
                if name in places:  # As where a module has both a kernel and a scale.
                    name = name.removesuffix(_LEAVES[path[-1]]) + path[-1]
                places[name] = Place(path, unit, axes, shape, path in of_gates)
        return places

    def name(self, path: Path, unit: int | None) -> str:
        """What a variable is called, or that of one unit where they are stacked."""
        keys = [f"{key}.{unit}" if key in self.stacked else key for key in path[:-1]]
        return ".".join([*keys, _LEAVES.get(path[-1], path[-1])])

    def known(self, name: str) -> str:
        """This class's name for a tensor that others may call otherwise."""
        return name.removeprefix("module.")

    def is_head(self, name: str) -> bool:
        """Whether a tensor, by its `known` name, is of the layer that gives the classes."""
        return name.startswith(getattr(self.arch, "head_name", "head") + ".")

    def is_optional(self, name: str) -> bool:
        """Whether a tensor, by its `known` name, may be missing, or be there and not used."""
        del name
        return False

    def written(self, name: str, like: Names = "torchvision") -> str:
        """What a tensor is called in a file that is written like those of others."""
        if like != "torchvision":
            raise UserError(f"--names is {like!r}, which only residual networks have: leave it.")
        return name

    def check_kind(self, shapes: Mapping[str, Shape], source: Any) -> str:
        """Refuses tensors that are plainly of another kind of network or of another size.

        Args:
          shapes: of the tensors, by their `known` names.
          source: what errors call the tensors.

        Returns:
          For people: what network the tensors are of.

        Raises:
          UserError: they are of another one.
        """
        del shapes, source
        return self.arch.describe()


def listed(names: Iterable[str]) -> str:
    """For people: the first five in their order, as 'a, b, c, d, e and 4 more'."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(ordered[:5]) + more


def _axes(path: Path, ndim: int) -> tuple[int, ...]:
    """HWIO and [in, out] here are OIHW and [out, in] there; all that is no kernel is the same."""
    if path[-1] != "kernel" or ndim < 2:
        return tuple(range(ndim))
    return (ndim - 1, ndim - 2, *range(ndim - 2))
