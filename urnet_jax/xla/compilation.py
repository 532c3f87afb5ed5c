"""How XLA is asked to compile, where its own choice is a slow one."""

import functools
from typing import Any

import jax

_FAST_CONVOLUTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
# By default XLA:CPU (jaxlib 0.10) gives convolutions of more than 16 channels to a library that it
# runs on one thread. Left out of that library's list, they run on all threads.


@functools.cache
def compiler_options(platform: str | None = None) -> dict[str, Any] | None:
    """For `jax.jit(f, compiler_options=compiler_options())`; None where XLA's own choice is good.

    The results are the same to rounding.

    Args:
      platform: that is compiled for; by default JAX's.
    """
    if (platform or jax.default_backend()) != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=_FAST_CONVOLUTIONS).lower(0.0).compile()
    except Exception:  # Another jaxlib that does not know the option, in whatever way it says so.
        return None
    return _FAST_CONVOLUTIONS
