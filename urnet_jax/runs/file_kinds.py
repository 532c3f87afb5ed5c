"""What kind of file some content is: one of weights, or which other."""

import io
import re
import zipfile
from typing import Literal

from etils import epath

from urnet_jax.errors import UserError

_TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""A number that PyTorch's files began with before they were zip archives."""

_OTHERS = (
    (b"\x89PNG", "an image (PNG)"),
    (b"\xff\xd8\xff", "an image (JPEG)"),
    (b"GIF8", "an image (GIF)"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"\x1f\x8b", "a compressed file (gzip)"),
    (b"version https://git-lfs", "a pointer of Git LFS, for which `git lfs pull` brings the file"),
)


def kind_of_weights(content: bytes, path: epath.PathLike) -> Literal["safetensors", "torch"]:
    """Which library reads a file of weights, by its content; its name says nothing.

    Args:
      content: of the whole file.
      path: what errors call it.

    Raises:
      UserError: it is no file of weights; the message says what it is.
    """
    other = _zip_archive(content) if content.startswith(b"PK\x03\x04") else None
    if content[8:9] == b"{" and content[:8].endswith(b"\0\0"):  # After the header's length.
        return "safetensors"
    if other == "torch" or (content.startswith(b"\x80") and _TORCH_MAGIC in content[:64]):
        return "torch"
    raise UserError(
        f"{path} is {other or _other(content)}: name a .safetensors file, or one by "
        "torch.save(model.state_dict(), FILE)."
    )


def _zip_archive(content: bytes) -> str:
    """`torch`, or for people what other zip archive it is."""
    try:
        names = [name.split("/")[-1] for name in zipfile.ZipFile(io.BytesIO(content)).namelist()]
    except (zipfile.BadZipFile, ValueError):
        return "damaged or cut short (a zip archive without its end)"
    if "constants.pkl" in names:
        return "a TorchScript program, not weights alone"
    return "torch" if "data.pkl" in names else "a zip archive that PyTorch did not write"


def _other(content: bytes) -> str:
    if not content:
        return "empty"
    if re.match(rb"\x80[\x02-\x05]", content):  # The versions of pickle's protocol.
        return "a pickle that PyTorch did not write, which could run any program and is not opened"
    for begin, what in _OTHERS:
        if content.startswith(begin):
            return what
    start = content[:1000]
    try:
        # The last character may be cut.
        printable = start.decode("utf-8", "ignore" if len(content) > 1000 else "strict")
    except UnicodeDecodeError:
        printable = "\0"
    return "no file of weights" if "\0" in printable else "a text file"
