"""Random numbers that never meet: each purpose draws from a stream of its own."""

import enum
from typing import Any


class Stream(enum.IntEnum):
    """What random numbers are for. Whoever draws folds its counters into its stream's key."""

    WEIGHTS = 0x3E16
    STEPS = 0x57E9
    AUGMENTATION = 0x0A06
    TEST = 0x7E57
    ORDER = 0xDA7A
    CALIBRATION = 0xCA1B
    STATISTICS = 0x57A7


def key(seed: Any, stream: Stream) -> Any:
    """The key of a stream, a JAX key: from it and counters alone all of its draws are made.

    No counter is folded into the seed's own key. Were it so, step 2566 of a run would draw what
    augmentation does, for 2566 is augmentation's number.

    Args:
      seed: the run's, a whole number, which may be traced.
      stream: what the numbers are for.
    """
    import jax  # Configs and the host's pipeline ask for numbers of streams without JAX.

    return jax.random.fold_in(jax.random.key(seed), stream)
