"""Compiled programs kept on disk, so that a second start need not compile them again."""

import os
import pathlib
import sys
import tempfile
import time
import warnings

import jax

from urnet_jax.errors import UserError

SWITCH = "URNET_COMPILATION_CACHE"
"""The environment variable that turns the cache off."""

KEPT_DAYS = 30
"""A program is compiled anew after so long: else the folder would only grow."""

MIN_COMPILE_S = 0.3
"""What compiles faster is not kept."""


def keep_compiled() -> None:
    """Has JAX keep compiled programs in the user's cache folder, urnet_jax/compiled.

    Nothing is changed where JAX has a folder already (JAX_COMPILATION_CACHE_DIR) or
    URNET_COMPILATION_CACHE is off. A folder that cannot be written is told on stderr, once.

    Raises:
      UserError: URNET_COMPILATION_CACHE is something else.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted not in ("", "off"):
        raise UserError(f"{SWITCH} is {wanted!r}; expected off, or nothing at all.")
    if wanted == "off" or jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        folder = _cache_home() / "urnet_jax" / "compiled"
        # JAX runs what it finds there: it is nobody else's to write.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        _remove_old(folder)
    except (OSError, RuntimeError) as error:  # The latter where there is no home.
        print(
            f"Mind: compiled programs cannot be kept ({error}): each start compiles them again. "
            f"{SWITCH}=off leaves this note out.",
            file=sys.stderr,
        )  # fmt: skip
        return
    # Another process may write an entry while this one reads it. JAX then compiles, and says so.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)


def _cache_home() -> pathlib.Path:
    """As the XDG base directory specification has it."""
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    return home if home.is_absolute() else pathlib.Path.home() / ".cache"


def _remove_old(folder: pathlib.Path) -> None:
    oldest = time.time() - 24 * 3600 * KEPT_DAYS
    for file in folder.iterdir():
        try:
            if file.is_file() and file.stat().st_mtime < oldest:
                file.unlink()
        except OSError:  # Another process was faster, or the file is another user's.
            pass
