"""Results that XLA:CPU is to compute once, where it would compute them again for each reader.

Its fusion pass copies cheap elementwise operations into whatever reads them. In a residual network
x_k = relu(x_{k-1} + ...) is one long chain of them: each reader of x_k would start from all earlier
convolutions, so that a step's time grows with the square of the depth. Of the means to stop that,
`lax.optimization_barrier` is gone before fusion; a call that must not be inlined stays.
"""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

Function = TypeVar("Function", bound=Callable[..., jax.Array])


def computed_once(function: Function) -> Function:
    """`function` of arrays, elementwise; on CPU its result is kept, elsewhere nothing changes.

    It has no gradient of its own: use it within both halves of a `jax.custom_vjp`.
    """
    called = jax.jit(function)

    def kept(*operands: jax.Array) -> jax.Array:
        with set_xla_metadata(inlineable="false"):
            return called(*operands)

    @functools.wraps(function)
    def run(*operands: jax.Array) -> jax.Array:
        return lax.platform_dependent(*operands, cpu=kept, default=function)

    return run  # pyright: ignore[reportReturnType]


@jax.custom_vjp
def add_relu(a: jax.Array, b: jax.Array) -> jax.Array:
    """ReLU of the sum of two arrays of one shape; in training it is computed once."""
    return jnp.maximum(a + b, 0)


_kept = computed_once(lambda a, b: lax.max(a + b, jnp.zeros_like(a)))
# Not `jnp.where`, which is a call of its own.
_kept_gradient = computed_once(
    lambda out, grad: lax.select(out > jnp.zeros((), out.dtype), grad, jnp.zeros_like(grad))
)


def _forward(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = _kept(a, b)
    return out, out


def _backward(out: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    grad = _kept_gradient(out, grad)
    return grad, grad


add_relu.defvjp(_forward, _backward)
