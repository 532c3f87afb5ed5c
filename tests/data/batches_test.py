"""Batches of the digits: order, seeds, resumption and the shares of processes."""

import json

import grain
import hypothesis
import hypothesis.strategies as st
import numpy as np
import orbax.checkpoint as ocp
import pytest

from helpers.data_batches import assert_same, joined, section, take
from urnet_jax.data.batches import eval_batches, train_batches
from urnet_jax.data.sources import open_split
from urnet_jax.errors import UserError


def training(split, seed=0, **processes):
    return iter(train_batches(split, section(), seed=seed, **processes))


@pytest.fixture(scope="module")
def train():
    return open_split(section(), "train")


@pytest.fixture(scope="module")
def test():
    return open_split(section(), "test")


def test_each_epoch_sees_every_example_once_in_a_new_order(train):
    batches = take(training(train, seed=3), 70)
    assert all(b["image"].shape == (64, 8, 8, 1) for b in batches)
    epoch, index = joined(batches, "epoch"), joined(batches, "index")
    np.testing.assert_array_equal(epoch, np.arange(70 * 64) // 1437)
    orders = [index[epoch == e] for e in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1437))
    assert (orders[0] != orders[1]).mean() > 0.9
    assert (orders[1] != orders[2]).mean() > 0.9
    np.testing.assert_array_equal(joined(batches, "image"), train.images[index])
    np.testing.assert_array_equal(joined(batches, "label"), train.labels[index])
    types = {key: value.dtype for key, value in batches[0].items()}
    assert types == {"image": np.uint8, "label": np.int32, "index": np.int64, "epoch": np.int32}


def test_the_order_depends_on_the_seed_alone(train):
    first = take(training(train, seed=3), 2)
    again = take(iter(train_batches(train, section(threads=1), seed=3)), 2)
    other = take(training(train, seed=4), 2)
    assert_same(again, first)
    assert (joined(first, "index") != joined(other, "index")).mean() > 0.9


def test_a_batch_may_be_larger_than_the_split(test):
    batch = next(iter(train_batches(test, section(batch_size=800), seed=0)))
    assert np.bincount(batch["epoch"]).tolist() == [360, 360, 80]


def test_an_iterator_resumes_from_its_state_in_mid_epoch(train):
    batches = training(train)
    take(batches, 10)
    state = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, 30)

    resumed = training(train)
    next(resumed)  # a state also replaces a position that was already taken up
    resumed.set_state(state)
    assert_same(take(resumed, 30), expected)
    batches.set_state(state)
    assert_same(take(batches, 30), expected)


def test_an_iterator_resumes_from_an_orbax_checkpoint(train, tmp_path):
    batches = training(train)
    take(batches, 25)
    with ocp.CheckpointManager(tmp_path, item_names=("data",)) as manager:
        manager.save(0, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(batches)))
    expected = take(batches, 30)

    resumed = training(train)
    with ocp.CheckpointManager(tmp_path, item_names=("data",)) as manager:
        restore = ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(resumed))
        manager.restore(0, args=restore)
    assert_same(take(resumed, 30), expected)


@pytest.mark.parametrize("process_count", [2, 4, 64])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(train, process_count):
    alone = take(training(train), 30)
    shares = [
        take(training(train, process_index=k, process_count=process_count), 30)
        for k in range(process_count)
    ]
    for step, batch in enumerate(alone):
        for key in batch:
            together = np.concatenate([share[step][key] for share in shares])
            np.testing.assert_array_equal(together, batch[key])


@hypothesis.given(local=st.integers(1, 400), process_count=st.integers(1, 4))
@hypothesis.settings(deadline=None, max_examples=40)
def test_evaluation_counts_each_example_once(test, local, process_count):
    shares = [
        list(eval_batches(test, section(), local * process_count, k, process_count))
        for k in range(process_count)
    ]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for step in zip(*shares, strict=True) for batch in step]
    assert all(len(value) == local for batch in batches for value in batch.values())
    mask = joined(batches, "mask")
    np.testing.assert_array_equal(joined(batches, "index")[mask], np.arange(360))
    np.testing.assert_array_equal(joined(batches, "image")[mask], test.images)
    np.testing.assert_array_equal(joined(batches, "label")[mask], test.labels)
    assert not joined(batches, "image")[~mask].any()
    assert (joined(batches, "index")[~mask] == -1).all()


def test_processes_that_cannot_share_a_batch_are_an_error(train, test):
    with pytest.raises(UserError, match="data.batch_size is 64; .* multiple of 3"):
        train_batches(train, section(), seed=0, process_count=3)
    with pytest.raises(UserError, match="batch size is 0; expected a positive"):
        eval_batches(test, section(), 0)


def test_an_augmentation_that_does_not_suit_the_dataset_is_an_error(train):
    with pytest.raises(UserError, match="'random_resized_crop'; .* none, crop, crop_flip"):
        train_batches(train, section(augment="random_resized_crop"), seed=0)
