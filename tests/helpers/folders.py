"""What a folder holds, for tests of what must be left alone."""

import hashlib
import pathlib


def contents(folder: pathlib.Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {name.removeprefix(str(folder)): digest for name, digest in digests.items()}
