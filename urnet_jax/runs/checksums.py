"""Checksums of a folder's files: Orbax itself reads a changed byte as if it were right."""

import json
import os
import zlib
from collections.abc import Iterator

from etils import epath

FILE = "checksums.json"

ORBAX_METADATA = "_CHECKPOINT_METADATA"
"""Orbax writes into it after all else, and misses it in a checkpoint that has none."""


def write(folder: epath.Path) -> None:
    """Records the files that the folder holds, at any depth."""
    sums = {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in _files(folder)}
    _record(folder, sums)


def replace_file(folder: epath.Path, name: str, text: str) -> None:
    """Gives a file of the folder another content, and that to the record.

    Wherever this is cut short, `check` finds the folder in order: it passes over a file that is
    not in the record.
    """
    sums = json.loads((folder / FILE).read_text()) if (folder / FILE).exists() else None
    if sums is not None:
        _record(folder, {other: value for other, value in sums.items() if other != name})
    _replace(folder / name, text)
    if sums is not None:
        _record(folder, sums | {name: zlib.crc32(text.encode())})


def remove_file(folder: epath.Path, name: str) -> None:
    """Removes a file from the folder and from the record; it need not be there."""
    if not (folder / name).exists():
        return
    if (folder / FILE).exists():
        sums = json.loads((folder / FILE).read_text())
        _record(folder, {other: value for other, value in sums.items() if other != name})
    (folder / name).unlink()


def check(folder: epath.Path) -> None:
    """Compares the files with what was recorded; where nothing was, all is taken to be well.

    Small records beside the checkpoint (`kept`) are passed over: without them it is whole. Whoever
    reads one asks `is_as_written`.

    Raises:
      ValueError: a file is missing or is not as it was written, or the record is not one.
      OSError: a file cannot be read.
    """
    if not (folder / FILE).exists():
        return
    for name, expected in json.loads((folder / FILE).read_text()).items():
        if name.endswith(".json") and "/" not in name:
            continue
        if not (folder / name).exists():
            raise ValueError(f"{name} is missing")
        if zlib.crc32((folder / name).read_bytes()) != expected:
            raise ValueError(f"{name} is not as it was written")


def is_as_written(path: epath.Path) -> bool:
    """Whether a file of a folder is what was recorded; True where nothing was."""
    # Twice, for somebody may replace it between one look and the other.
    return any(_matches(path) for _ in range(2))


def is_lost(path: epath.Path) -> bool:
    """Whether there is no such file in a folder whose record says that it was written."""
    return not path.exists() and path.name in _recorded(path)


def _matches(path: epath.Path) -> bool:
    found = zlib.crc32(path.read_bytes())
    return _recorded(path).get(path.name, found) == found


def _recorded(path: epath.Path) -> dict[str, int]:
    record = path.parent / FILE
    return json.loads(record.read_text()) if record.exists() else {}


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):  # epath has no recursive glob
        if path.is_dir():
            yield from _files(path)
        elif path.name not in (FILE, ORBAX_METADATA):
            yield path


def _record(folder: epath.Path, sums: dict[str, int]) -> None:
    _replace(folder / FILE, json.dumps(sums, indent=1))


def _replace(path: epath.Path, text: str) -> None:
    """Writes a file whole or not at all, also where the machine loses power."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        if "://" not in str(path):
            os.fsync(file.fileno())
    temporary.replace(path)
