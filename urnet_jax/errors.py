"""The one kind of error that is shown to users without a traceback."""


class UserError(ValueError):
    """An input that a user can put right; the message is one sentence that says how."""
