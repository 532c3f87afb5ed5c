"""The one kind of error that is shown to users without a traceback, and how it is shown."""

import contextlib
import sys
from collections.abc import Iterator

from etils import epath


class UserError(ValueError):
    """An input that a user can put right; the message is one sentence that says how."""

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this, and shows the sentence alone in notebooks too.
        return [f"error: {self}"]


class MissingCode(UserError):
    """Code of the user's own that is not to be found, though what needs it is whole."""


class Stopped(Exception):
    """A run was asked to stop and has saved where it is; the message says so."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextlib.contextmanager
def told_to_the_user(interrupted: str) -> Iterator[None]:
    """Ends the process with one sentence on stderr where a traceback would help nobody.

    Exit codes: 2 for a UserError, Stopped's own, 130 for Ctrl-C, which shows the sentence
    `interrupted`.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def writable(path: epath.PathLike) -> Iterator[None]:
    """Says in a UserError that `path`, in a run's workdir, cannot be written, and why."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): make room or mend it; the "
            "same command then goes on from the last checkpoint."
        ) from error


def make_folder(path: epath.PathLike, name: str) -> None:
    """Makes the folder that the user named with the flag `name`, if it is not there.

    Raises:
      UserError: it cannot be made, or is not a folder.
    """
    try:
        epath.Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ImportError) as error:  # A bucket needs a library that may be missing.
        raise UserError(
            f"{name} {path} cannot be made a folder ({error}): name another."
        ) from error
