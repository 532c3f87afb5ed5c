"""Streams of random numbers do not meet."""

import jax
import numpy as np

from urnet_jax import streams
from urnet_jax.streams import Stream

COUNTERS = 20_000


def test_no_key_of_a_stream_is_one_of_another():
    """Over three seeds: each stream's own key, and those of many counters folded into it."""
    found = []
    for seed in range(3):
        found.append(jax.random.key(seed)[None])
        for stream in Stream:
            key = streams.key(seed, stream)
            fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
            found += [key[None], fold(key, np.arange(COUNTERS))]
    data = np.concatenate([np.asarray(jax.random.key_data(keys), np.uint64) for keys in found])
    assert len(data) == 3 * (1 + len(Stream) * (1 + COUNTERS))
    assert len(np.unique(data[:, 0] << np.uint64(32) | data[:, 1])) == len(data)


def test_a_counter_of_the_seeds_own_key_would_meet_a_stream():
    """Why nobody folds a counter into `jax.random.key(seed)`."""
    counter = int(Stream.AUGMENTATION)
    met = jax.random.fold_in(jax.random.key(0), counter)
    assert (jax.random.key_data(met) == jax.random.key_data(streams.key(0, Stream(counter)))).all()


def test_streams_of_numpy_do_not_meet_either():
    """What the host draws from (stream, seed, epoch)."""
    draws = [
        np.random.default_rng((stream, seed, epoch)).integers(2**63)
        for stream in Stream for seed in range(5) for epoch in range(200)
    ]  # fmt: skip
    assert len(set(draws)) == len(draws)
    assert len(set(Stream)) == len(Stream) == len(Stream.__members__)
