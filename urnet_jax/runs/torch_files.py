"""Files of tensors: PyTorch's, which need PyTorch, and safetensors, which do not."""

import io
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import safetensors.numpy
from etils import epath

from urnet_jax.errors import UserError

Tensors: TypeAlias = dict[str, np.ndarray]
"""A state dict of NumPy arrays in PyTorch's order of axes."""

TORCH_SUFFIXES = (".pt", ".pth", ".th")


def read_state_dict(path: epath.PathLike) -> Tensors:
    """The tensors of a checkpoint file, under the names that they have there.

    Args:
      path: a `.safetensors` file; any other is read by PyTorch, and may hold its tensors under
        `state_dict` or `model`.

    Raises:
      UserError: there is no such file, it holds other things than tensors, or it needs PyTorch
        and there is none.
    """
    try:
        content = epath.Path(path).read_bytes()
    except (OSError, ImportError) as error:  # A bucket needs a library that may be missing.
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); name a PyTorch checkpoint.") from error
    torch = None if epath.Path(path).suffix == ".safetensors" else _import_torch(path)
    try:
        if torch is None:
            return safetensors.numpy.load(content)
        tree = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # Both libraries raise many kinds for a file that is none of theirs.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
        raise UserError(
            f"{path} is not a checkpoint of tensors alone ({reason}); write one with "
            "torch.save(model.state_dict(), FILE), or with safetensors as float32."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    entries: Any = tree if isinstance(tree, Mapping) else {"(all)": tree}
    tensors = {}
    for name, value in entries.items():
        if not torch.is_tensor(value):
            raise UserError(
                f"{path} is not a state dict: its entry {name!r} is of type "
                f"{type(value).__name__}, not a tensor; write one with "
                "torch.save(model.state_dict(), FILE)."
            )
        value = value.float() if value.is_floating_point() else value  # NumPy has no bfloat16.
        tensors[str(name)] = value.detach().numpy()
    return tensors


def write_state_dict(tensors: Tensors, path: epath.PathLike) -> None:
    """Writes a checkpoint as its name's suffix says: `.safetensors`, or PyTorch's `.pt`.

    Raises:
      UserError: the suffix is another, the file cannot be written, or PyTorch is missing.
    """
    check_output(path)
    arrays = {name: np.array(array, order="C") for name, array in tensors.items()}
    if epath.Path(path).suffix == ".safetensors":
        content = safetensors.numpy.save(arrays)
    else:
        torch = _import_torch(path)
        buffer = io.BytesIO()
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, buffer)
        content = buffer.getvalue()
    try:
        epath.Path(path).write_bytes(content)
    except (OSError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be written ({reason}); name another file.") from error


def check_output(path: epath.PathLike) -> None:
    """Raises a UserError where `write_state_dict` has no way to write such a file."""
    suffix = epath.Path(path).suffix
    if suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise UserError(
            f"{path} is no name for a checkpoint; expected one that ends in .safetensors, "
            f"{', '.join(TORCH_SUFFIXES[:-1])} or {TORCH_SUFFIXES[-1]}."
        )
    if suffix in TORCH_SUFFIXES:
        _import_torch(path)


def _import_torch(path: epath.PathLike) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"{path} is a file of PyTorch, which is not installed: install the extra with "
            "`pip install '.[torch]'`, or use a .safetensors file."
        ) from error
    return torch
