"""The one kind of error that is shown to users without a traceback."""

from etils import epath


class UserError(ValueError):
    """An input that a user can put right; the message is one sentence that says how."""


def make_folder(path: epath.PathLike, name: str) -> None:
    """Makes the folder that the user named with the flag `name`, if it is not there.

    Raises:
      UserError: it cannot be made, or is not a folder.
    """
    try:
        epath.Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{name} {path} cannot be made a folder ({error}): name another."
        ) from error
