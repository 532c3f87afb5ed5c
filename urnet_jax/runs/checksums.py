"""Checksums of a folder's files: Orbax itself reads a changed byte as if it were right."""

import json
import zlib
from collections.abc import Iterator

from etils import epath

FILE = "checksums.json"

ORBAX_METADATA = "_CHECKPOINT_METADATA"
"""Orbax writes into it after all else, and misses it in a checkpoint that has none."""


def write(folder: epath.Path) -> None:
    """Records the files that the folder holds, at any depth."""
    sums = {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in _files(folder)}
    temporary = folder / f"{FILE}.tmp"
    temporary.write_text(json.dumps(sums, indent=1))
    temporary.replace(folder / FILE)


def check(folder: epath.Path) -> None:
    """Compares the files with what was recorded; where nothing was, all is taken to be well.

    Raises:
      ValueError: a file is missing or is not as it was written, or the record is not one.
      OSError: a file cannot be read.
    """
    if not (folder / FILE).exists():
        return
    for name, expected in json.loads((folder / FILE).read_text()).items():
        if not (folder / name).exists():
            raise ValueError(f"{name} is missing")
        if zlib.crc32((folder / name).read_bytes()) != expected:
            raise ValueError(f"{name} is not as it was written")


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):  # epath has no recursive glob
        if path.is_dir():
            yield from _files(path)
        elif path.name not in (FILE, ORBAX_METADATA):
            yield path
