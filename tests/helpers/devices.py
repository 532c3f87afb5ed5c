"""Functions that run on eight CPU devices, in a process that a worker of the tests starts once.

Why not in the tests' own process: its number of devices is fixed when JAX starts. With eight,
whatever asks for `jax.devices()` takes all of them, and the many tests of one device would each
have to say so. XLA also keeps what it compiled by the number of devices that there are: the tests
would share no program with the commands that they start.
"""

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from typing import Any

COUNT = 8
TIMEOUT_S = 600
"""What a function may take at most; that of a quiet machine is seconds."""


def _start() -> None:
    import jax

    jax.config.update("jax_num_cpu_devices", COUNT)
    assert len(jax.devices()) == COUNT


class Devices:
    """Calls functions, each of which a test module or a helper defines, one after another."""

    def __init__(self) -> None:
        self._process = concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _start
        )

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns, which must pickle, as its arguments must.

        Its failed assertions and other errors are raised here, with its traceback.
        """
        return self._process.submit(function, *arguments).result(TIMEOUT_S)

    def close(self) -> None:
        self._process.shutdown(cancel_futures=True)
