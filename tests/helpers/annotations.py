"""How jaxtyping's annotations of urnet_jax are checked while the tests run."""

from collections.abc import Callable
from typing import TypeVar

from beartype import BeartypeConf, beartype, roar

F = TypeVar("F", bound=Callable)

_with_tower = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def checked(function: F) -> F:
    """`function`, which raises where an argument or its result is not what its annotation says.

    Left alone are constructors, for JAX builds a pytree anew around shapes, shardings or nothing,
    which are not the arrays that its fields are in use; and what beartype cannot check in a single
    function: Self, and protocols that isinstance refuses.
    """
    if function.__name__ == "__init__":
        return function
    try:
        return _with_tower(function)
    except (roar.BeartypeDecorHintPep673Exception, roar.BeartypeDecorHintPep3119Exception):
        return function
