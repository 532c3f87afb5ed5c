"""How jaxtyping's annotations of urnet_jax are checked while the tests run."""

from collections.abc import Callable
from typing import TypeVar

from beartype import BeartypeConf, beartype

F = TypeVar("F", bound=Callable)

_with_tower = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def checked(function: F) -> F:
    """`function`, which raises where an argument or its result is not what its annotation says.

    Constructors are left alone: JAX builds a pytree anew around shapes, shardings or nothing, which
    are not the arrays that its fields are in use.
    """
    return function if function.__name__ == "__init__" else _with_tower(function)
