"""Small records that are kept with a checkpoint, each a dataclass in a JSON file of its folder."""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from etils import epath

from urnet_jax.errors import UserError, writable
from urnet_jax.runs import checksums
from urnet_jax.runs.meta import FOLDER

Record = TypeVar("Record")


def to_text(record: Any) -> str:
    """A dataclass as JSON, from which `from_file` makes an equal one."""
    return json.dumps(dataclasses.asdict(record), indent=2, allow_nan=False) + "\n"


def write(workdir: epath.PathLike, step: int, file: str, record: Any) -> epath.Path:
    """Puts a record into the checkpoint's folder, in place of an older one."""
    path = path_of(workdir, step, file)
    with writable(path):
        checksums.replace_file(path.parent, file, to_text(record))
    return path


def remove(workdir: epath.PathLike, step: int, file: str) -> bool:
    """Removes a record from the checkpoint's folder; whether there was one."""
    path = path_of(workdir, step, file)
    there = path.exists()
    with writable(path):
        checksums.remove_file(path.parent, file)
    return there


def path_of(workdir: epath.PathLike, step: int, file: str) -> epath.Path:
    """Where a record of a checkpoint lies."""
    return epath.Path(workdir) / FOLDER / str(step) / file


def from_file(path: epath.Path, make: Callable[..., Record], what: str) -> Record | None:
    """What a file holds, None if there is no such file.

    Args:
      path: the file.
      make: f(**fields) -> the record, lists in them being tuples, however deep; it raises
        ValueError, TypeError or AttributeError where they do not hold together.
      what: the record is called in an error.

    Raises:
      UserError: the file is not one, or is not as it was written.
    """
    if not path.exists():
        if checksums.is_lost(path):
            print(f"warning: {path} is gone: urnet calibrate makes it anew.", file=sys.stderr)
        return None
    if not checksums.is_as_written(path):
        raise UserError(
            f"{path} is not as it was written: remove it, or run urnet calibrate again."
        )
    try:
        return make(**{name: _frozen(x) for name, x in json.loads(path.read_text()).items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a {what}: remove it, or run urnet calibrate again."
        ) from error


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
