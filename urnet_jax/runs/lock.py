"""One run at a time in a workdir."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

import jax
from etils import epath

from urnet_jax.errors import UserError, make_folder, writable
from urnet_jax.xla import sharding


@contextlib.contextmanager
def locked(workdir: epath.PathLike) -> Iterator[None]:
    """Makes the workdir and keeps other runs out; the system ends the lock with the process.

    A bucket such as gs://... is not locked. Folders that were made here and are empty at the end
    are removed. All processes of a run call this together.

    Raises:
      UserError: the workdir cannot be made, another run is at work there, or the processes of this
        run see different folders of that name.
    """
    handle, taken, made = None, False, []
    with sharding.failing_together():
        if sharding.is_main():
            made = _missing(workdir)
            make_folder(workdir, "--workdir")
    if sharding.is_main() and "://" not in str(workdir):
        handle = os.open(workdir, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken = True
        except OSError:  # A file system without locks.
            pass
    try:
        if sharding.decided_by_main(taken):
            raise UserError(
                f"Another run is at work in the workdir {workdir}: wait for its end, stop it, or "
                "choose another --workdir."
            )
        _check_shared(workdir)
        yield
    finally:
        if handle is not None:
            if not taken:
                with contextlib.suppress(OSError):  # One is not empty.
                    for folder in made:
                        os.rmdir(folder)
            os.close(handle)


def _missing(workdir: epath.PathLike) -> list[epath.Path]:
    """The folders on the way to `workdir` that are not there, itself first."""
    if "://" in str(workdir):
        return []
    path = epath.Path(workdir).absolute()
    return [folder for folder in (path, *path.parents) if not os.path.exists(folder)]


def _check_shared(workdir: epath.PathLike) -> None:
    """Raises a UserError on all processes where one of them has another folder of that name."""
    if jax.process_count() == 1:
        return
    mark = epath.Path(workdir) / f".seen_by_all.{sharding.decided_by_main(os.getpid())}"
    with sharding.failing_together():  # The others wait here for the mark.
        if sharding.is_main():
            with writable(mark):
                mark.touch()
    shared = sharding.on_all(mark.exists())
    if sharding.is_main():
        mark.unlink(missing_ok=True)
    if not shared:
        raise UserError(
            f"The workdir {workdir} is not the same folder on all hosts of this run: name one on a "
            "disk that all of them see, with its whole path."
        )
