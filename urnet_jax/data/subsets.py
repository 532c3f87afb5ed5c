"""Some examples of a split, as a split of their own, in which each keeps its number."""

import dataclasses

import numpy as np

from urnet_jax.data.batches import examples
from urnet_jax.data.sources import Split
from urnet_jax.errors import UserError


def take(split: Split, index: np.ndarray) -> Split:
    """The examples at `index`, in memory, as a split of their own."""
    images, labels = examples(split, index)
    return dataclasses.replace(
        split, num_examples=len(index), images=images, labels=labels, source=None,
        # Of a part of a part, those in the whole: what is drawn for an example hangs on its number.
        numbers=index if split.numbers is None else split.numbers[index],
    )  # fmt: skip


def places(split: Split, samples: np.ndarray) -> np.ndarray:
    """Where in a split, or a subset of one, the samples of these numbers lie.

    Raises:
      UserError: it has none of such a number.
    """
    numbers = np.arange(split.num_examples) if split.numbers is None else split.numbers
    missing = samples[~np.isin(samples, numbers)]
    if missing.size:
        if split.numbers is not None:
            raise UserError(
                f"Sample {missing[0]} is not in this subset of {len(numbers)} samples of split "
                f"{split.name} of {split.dataset}: pass the whole split."
            )
        raise UserError(
            f"The sample is {missing[0]}; the split {split.name} of {split.dataset} has 0 to "
            f"{numbers[-1]}."
        )
    order = np.argsort(numbers)
    return order[np.searchsorted(numbers, samples, sorter=order)]
