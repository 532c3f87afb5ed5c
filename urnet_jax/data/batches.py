"""The order in which a dataset's examples reach the network.

`train_batches` visits a split for ever, in an order that is a function of the seed and the step
alone, whatever the number of processes, workers and threads; `eval_batches` visits it once.
"""

import concurrent.futures
import functools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int32, Int64, UInt8

from urnet_jax.data import augment
from urnet_jax.data.sources import Split, check_augmentation, labels_of, open_split, readable
from urnet_jax.errors import UserError

__all__ = [
    "Batch", "Split", "TrainBatches", "eval_batches", "examples", "open_split", "train_batches",
]  # fmt: skip

Batch = dict[str, np.ndarray]

_ENDLESS = 2**62  # steps
_AHEAD = 2  # batches that are loaded before they are asked for
# Keeps the draws of the order apart from others that also start from the seed.
_STREAM = 0x0DA7A


class TrainBatches(grain.IterDataset):
    """Endless training batches; see `train_batches`.

    The state of an iterator is its step alone, so a checkpoint that was written with one number of
    workers and threads can be read with any other.
    """

    def __init__(self, batches: grain.MapDataset, workers: int):
        super().__init__()
        self._batches = batches
        self._workers = workers

    def __iter__(self) -> "_TrainIterator":
        return _TrainIterator(self._batches, self._workers)


class _TrainIterator(grain.DatasetIterator):
    def __init__(self, batches: grain.MapDataset, workers: int):
        super().__init__()
        self._batches = batches
        self._workers = workers
        self._step = 0
        self._ahead: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        batch = next(self._loading())
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        self._stop()
        self._step = state["step"]

    def start_prefetch(self) -> None:
        self._loading().start_prefetch()

    def close(self) -> None:
        self._stop()
        super().close()

    def _loading(self) -> grain.DatasetIterator:
        self._assert_not_closed()
        if self._ahead is None:
            self._ahead = _prefetch(self._batches[self._step :], self._workers)
        return self._ahead

    def _stop(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None


def train_batches(
    split: Split,
    data: Any,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """This process's share of endless training batches, shuffled anew in each epoch.

    Epochs follow one another without a gap: a batch may hold the end of one and the start of the
    next. Process k takes the k-th of process_count equal parts of each step's batch, so the global
    batch is the same, in the same order, for any number of processes.

    Args:
      split: to train on.
      data: the config's section `data`; its `batch_size` counts all processes.
      seed: of the order, and of the augmentation of images that are decoded on the way.
      process_index: of this process.
      process_count: of all that train together.

    Returns:
      An iterable whose iterator, which Grain can checkpoint, yields `image` uint8 [b, h, w, c],
      `label` int32 [b], `index` int64 [b] (of the example in its split) and `epoch` int32 [b].
      Images in memory come as they are, for `augment.augment_images`; others come augmented.

    Raises:
      UserError: the augmentation does not suit the dataset or how the split was opened, or the
        processes cannot share a batch.
    """
    check_augmentation(data)
    random_crop = data.augment == "random_resized_crop"
    if random_crop and split.source is None:
        raise UserError(
            "data.augment is 'random_resized_crop', but the split was opened with another, its "
            "images resized: open it again."
        )
    load = functools.partial(
        _load_train,
        split=split,
        seed=seed,
        batch_size=_share(data.batch_size, process_count, "data.batch_size"),
        process_index=process_index,
        process_count=process_count,
        random_crop=random_crop,
        threads=_decoding_threads(data),
    )
    return TrainBatches(grain.MapDataset.range(_ENDLESS).map(load), _workers(split, data))


def eval_batches(
    split: Split,
    data: Any,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """This process's share of one pass over the split, in its order and without augmentation.

    Args:
      split: to evaluate on.
      data: the config's section `data`.
      batch_size: over all processes; process k takes the k-th of process_count equal parts.
      process_index: of this process.
      process_count: of all that evaluate together; each gets the same number of batches.

    Returns:
      An iterator of `image` uint8 [b, h, w, c], `label` int32 [b], `index` int64 [b] and `mask`
      bool [b]. The end of the last batch is filled with black images of label 0, index -1 and mask
      False.

    Raises:
      UserError: the processes cannot share a batch.
    """
    load = functools.partial(
        _load_eval,
        split=split,
        batch_size=_share(batch_size, process_count, "The evaluation's batch size"),
        process_index=process_index,
        process_count=process_count,
        threads=_decoding_threads(data),
    )
    num_batches = -(-split.num_examples // batch_size)
    return _prefetch(grain.MapDataset.range(num_batches).map(load), _workers(split, data))


def examples(
    split: Split, index: Int64[np.ndarray, " b"], threads: int = 1
) -> tuple[UInt8[np.ndarray, "b h w c"], Int32[np.ndarray, " b"]]:
    """Images as evaluation sees them, and labels, of the examples at `index`."""

    def decode(i: int, encoded: bytes) -> np.ndarray:
        del i
        return augment.decode_eval(encoded, split.image_shape[0])

    return _read(split, index, decode, threads)


def _load_train(
    step: int,
    *,
    split: Split,
    seed: int,
    batch_size: int,
    process_index: int,
    process_count: int,
    random_crop: bool,
    threads: int,
) -> Batch:
    """The batch of a step, from its arguments alone: it may run in a thread or another process."""
    first = (step * process_count + process_index) * batch_size
    epoch, place = np.divmod(first + np.arange(batch_size, dtype=np.int64), split.num_examples)
    index = np.empty_like(place)
    for e in np.unique(epoch):
        index[epoch == e] = _order(split.num_examples, seed, int(e))[place[epoch == e]]

    def decode(i: int, encoded: bytes) -> np.ndarray:
        size = split.image_shape[0]
        if not random_crop:
            return augment.decode_eval(encoded, size)
        return augment.decode_train(encoded, size, seed, int(epoch[i]), int(index[i]))

    image, label = _read(split, index, decode, threads)
    return {"image": image, "label": label, "index": index, "epoch": epoch.astype(np.int32)}


def _load_eval(
    step: int,
    *,
    split: Split,
    batch_size: int,
    process_index: int,
    process_count: int,
    threads: int,
) -> Batch:
    first = (step * process_count + process_index) * batch_size
    index = first + np.arange(batch_size, dtype=np.int64)
    mask = index < split.num_examples
    index[~mask] = -1
    image = np.zeros((batch_size, *split.image_shape), np.uint8)
    label = np.zeros(batch_size, np.int32)
    if mask.any():
        image[mask], label[mask] = examples(split, index[mask], threads)
    return {"image": image, "label": label, "index": index, "mask": mask}


def _read(
    split: Split,
    index: Int64[np.ndarray, " b"],
    decode: Callable[[int, bytes], np.ndarray],
    threads: int,
) -> tuple[UInt8[np.ndarray, "b h w c"], Int32[np.ndarray, " b"]]:
    """Images and labels at `index`; `decode` gets an image's place in the batch and its file."""
    if split.images is not None and split.labels is not None:
        return split.images[index], split.labels[index]
    title = f"{split.dataset} {split.name}"
    with readable(f"The split {title!r}"):
        records = split.source.__getitems__(index.tolist())
    images = np.empty((len(index), *split.image_shape), np.uint8)

    def fill(i: int) -> None:
        with readable(f"Image {index[i]} of the split {title!r}"):
            images[i] = decode(i, records[i]["image"])

    mapped = _pool(threads).map if threads > 1 else map
    for _ in mapped(fill, range(len(index))):
        pass
    return images, labels_of(records, title)


@functools.lru_cache(maxsize=2)
def _order(num_examples: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    return np.random.default_rng((_STREAM, seed, epoch)).permutation(num_examples)


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="decode")


def _prefetch(batches: grain.MapDataset, workers: int) -> grain.DatasetIterator:
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
    loading = batches.to_iter_dataset(ahead)
    if workers:
        if not flags.FLAGS.is_parsed():
            # In a notebook nobody has parsed absl's flags, without which Grain starts no process.
            flags.FLAGS.mark_as_parsed()
        loading = loading.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(loading)


def _share(batch_size: int, process_count: int, name: str) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"{name} is {batch_size}; expected a positive multiple of {process_count}, the number "
            "of processes that share it."
        )
    return batch_size // process_count


def _decoding_threads(data: Any) -> int:
    return 1 if data.workers else data.threads


def _workers(split: Split, data: Any) -> int:
    """Images in memory need no decoding, and would have to be copied to every worker."""
    return 0 if split.source is None else data.workers
