"""Files of tensors: PyTorch's, which need PyTorch, and safetensors, which do not."""

import io
import pickle
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import safetensors.numpy
from etils import epath

from urnet_jax.errors import UserError
from urnet_jax.runs.file_kinds import kind_of_weights

Tensors: TypeAlias = dict[str, np.ndarray]
"""A state dict of NumPy arrays in PyTorch's order of axes."""

_SAVE_WEIGHTS = "write the weights alone, with torch.save(model.state_dict(), FILE)."

TORCH_SUFFIXES = (".pt", ".pth", ".th")


def read_state_dict(path: epath.PathLike) -> Tensors:
    """The tensors of a file of weights, under the names that they have there.

    Args:
      path: a file of safetensors, or one of PyTorch, which may hold its tensors under `state_dict`
        or `model`. Its content decides which it is. Or the folder of Hugging Face's
        `save_pretrained`, with such a file.

    Raises:
      UserError: there is no such file, it is none of weights or holds other things too, or it
        needs PyTorch and there is none.
    """
    if "://" not in str(path) and epath.Path(path).is_dir():
        path = _within(epath.Path(path))
    try:
        content = epath.Path(path).read_bytes()
    except (OSError, ImportError) as error:  # A bucket needs a library that may be missing.
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); name a file of weights.") from error
    if kind_of_weights(content, path) == "torch":
        return _read_torch(content, path)
    try:
        return safetensors.numpy.load(content)
    except KeyError as error:
        raise UserError(
            f"{path} holds tensors of type {error.args[0]}, which NumPy lacks: write them as "
            "float32."
        ) from error
    except Exception as error:  # Its own kind is not a public name.
        raise _damaged(path, "safetensors") from error


_SAVED = ("model.safetensors", "pytorch_model.bin")


def _within(folder: epath.Path) -> epath.Path:
    """The file of weights in a folder by `save_pretrained`."""
    for name in _SAVED:
        if (folder / name).exists():
            return folder / name
    for name in _SAVED:
        if (folder / f"{name}.index.json").exists():
            raise UserError(
                f"{folder} holds its weights in several files ({name}.index.json); save them in "
                "one, with a larger max_shard_size."
            )
    raise UserError(
        f"{folder} is a folder without {' or '.join(_SAVED)}; name a file of weights, or set "
        "init_from of the first phase to begin with a run by train.py."
    )


def _read_torch(content: bytes, path: epath.PathLike) -> Tensors:
    torch = _import_torch(path)
    try:
        tree = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Its own message advises to load the file whatever it runs.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"an object of the class {found[1]}" if found else "objects of Python's"
        raise UserError(
            f"{path} holds {what} beside tensors; it is not opened, since such a file can run any "
            f"program: {_SAVE_WEIGHTS}"
        ) from None
    except Exception as error:  # PyTorch raises many kinds.
        raise _damaged(path, "PyTorch") from error
    for key in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    entries: Any = tree if isinstance(tree, Mapping) else {"(all)": tree}
    tensors = {}
    for name, value in entries.items():
        if not torch.is_tensor(value):
            raise UserError(
                f"{path} is not a state dict: its entry {name!r} is of type "
                f"{type(value).__name__}, not a tensor; {_SAVE_WEIGHTS}"
            )
        value = value.float() if value.is_floating_point() else value  # NumPy has no bfloat16.
        tensors[str(name)] = value.detach().numpy()
    return tensors


def _damaged(path: epath.PathLike, library: str) -> UserError:
    return UserError(
        f"{path} is damaged or cut short: {library} cannot read it; copy or download it again."
    )


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
