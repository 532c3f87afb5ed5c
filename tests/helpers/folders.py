"""Folders in tests: what one holds, and one that all workers of pytest-xdist share."""

import fcntl
import hashlib
import os
import pathlib
from collections.abc import Callable

import pytest


def contents(folder: pathlib.Path) -> dict[str, str]:
    """The digest of each file by its name, for tests of what must be left alone."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {name.removeprefix(str(folder)): digest for name, digest in digests.items()}


def once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """The folder that `make` fills for the first worker that asks; the others wait for it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder
