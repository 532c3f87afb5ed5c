"""What training is fed with: the splits, and this process's parts of the batches."""

import jax
from grain.python import DatasetIterator

from urnet_jax.config import Config
from urnet_jax.data.batches import train_batches
from urnet_jax.data.sources import open_split
from urnet_jax.data.splits import Split
from urnet_jax.xla import sharding


def open_splits(config: Config) -> tuple[Split, Split]:
    """The training and the test split."""
    with sharding.failing_together():  # A host may lack the data.
        train_split = open_split(config.data, "train")
        test_split = open_split(config.data, "test")
    if train_split.num_examples < config.data.batch_size:
        print(
            f"Mind: data.batch_size is {config.data.batch_size}, more than the "
            f"{train_split.num_examples} training images: an epoch is less than a step."
        )
    return train_split, test_split


def own_batches(config: Config, train_split: Split) -> DatasetIterator:
    """This process's parts of the training batches, without end."""
    parts = train_batches(
        train_split, config.data, seed=config.seed,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    return iter(parts)
