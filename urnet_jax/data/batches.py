"""The order in which a dataset's examples reach the network.

`train_batches` visits a split for ever, in an order that is a function of the seed and the step
alone, whatever the number of processes, workers and threads; `eval_batches` visits it once.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from jaxtyping import Int64

from urnet_jax.data import datasets, decode
from urnet_jax.data.records import Replaced, Undecodable, report_left_out
from urnet_jax.data.splits import Split, decode_for_evaluation, read, read_for_evaluation
from urnet_jax.data.workers import Loading
from urnet_jax.errors import UserError
from urnet_jax.streams import Stream

Batch = dict[str, np.ndarray]

_ENDLESS = 2**62  # steps
_REPLACEMENTS = 100  # that are tried in a row
_CROPPED_IN_DECODING = ("random_resized_crop", "scale_crop_flip")

# Under this name a batch brings its list of Undecodable out of the process that loaded it.
_BAD = "undecodable"


class TrainBatches(grain.IterDataset):
    """Endless training batches; see `train_batches`.

    The state of an iterator is its step alone, so a checkpoint that was written with one number of
    workers and threads can be read with any other.
    """

    def __init__(self, batches: grain.MapDataset, workers: int, title: str):
        super().__init__()
        self._batches = batches
        self._workers = workers
        self._title = title

    def __iter__(self) -> "_TrainIterator":
        return _TrainIterator(self._batches, self._workers, self._title)


class _TrainIterator(grain.DatasetIterator):
    def __init__(self, batches: grain.MapDataset, workers: int, title: str):
        super().__init__()
        self._batches = batches
        self._workers = workers
        self._step = 0
        self._ahead: Loading | None = None
        self._replaced = Replaced(title)

    def __next__(self) -> Batch:
        batch = next(self._loading())
        self._step += 1
        self._replaced.add(batch.pop(_BAD))
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        self._stop()
        self._step = state["step"]

    def start_prefetch(self) -> None:
        self._loading().start()

    def close(self) -> None:
        self._stop()
        self._replaced.close()
        super().close()

    def _loading(self) -> Loading:
        self._assert_not_closed()
        if self._ahead is None:
            self._ahead = Loading(self._batches[self._step :], self._workers)
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
      `label` int32 [b], `index` int64 [b] (the example's number) and `epoch` int32 [b].
      Label maps are int32 [b, h, w], with -1 for what counts nowhere; h and w are
      `data.image_size` where they are cropped at random, else `data.eval_size`.
      Images in memory come as they are, for `augment.augment_images`; others come augmented.
      Where `split.unreadable` is `skip`, the next one in the split takes the place of an example
      whose image cannot be decoded; those are named on stderr, and counted when the iterator is
      closed.

    Raises:
      UserError: the augmentation does not suit the dataset or how the split was opened, or the
        processes cannot share a batch.
    """
    datasets.check(data)
    if (data.labels == "map") != bool(split.maps):
        raise UserError(
            f"data.labels is {data.labels!r}, but the split was opened with another: open it again."
        )
    random_crop = data.augment in _CROPPED_IN_DECODING
    if random_crop and split.source is None:
        raise UserError(
            f"data.augment is {data.augment!r}, but the split was opened with another, its "
            "images resized: open it again."
        )
    load = functools.partial(
        _load_train,
        split=split,
        seed=seed,
        batch_size=_share(data.batch_size, process_count, "data.batch_size"),
        process_index=process_index,
        process_count=process_count,
        crop_size=data.image_size if random_crop else 0,
        threads=_decoding_threads(data),
    )
    batches = grain.MapDataset.range(_ENDLESS).map(load)
    return TrainBatches(batches, _workers(split, data), split.title)


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
      An iterator of `image` uint8 [b, h, w, c], `label` int32 [b], or [b, h, w] of label maps,
      `index` int64 [b] and `mask` bool [b]; in a map -1 is what counts nowhere. What does not count
      as an example has a black image, label -1 and mask False: what
      fills the end of the last batch, whose index is -1, and an image that cannot be decoded where
      `split.unreadable` is `skip`; how many those are is said on stderr at the end.

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
    return _reported(
        Loading(grain.MapDataset.range(num_batches).map(load), _workers(split, data)), split
    )


def _load_train(
    step: int,
    *,
    split: Split,
    seed: int,
    batch_size: int,
    process_index: int,
    process_count: int,
    crop_size: int,  # pixels of a square that is cropped at random; 0: none is
    threads: int,
) -> dict[str, Any]:
    """The batch of a step, from its arguments alone: it may run in a thread or another process."""
    first = (step * process_count + process_index) * batch_size
    epoch, place = np.divmod(first + np.arange(batch_size, dtype=np.int64), split.num_examples)
    index = np.empty_like(place)
    for e in np.unique(epoch):
        index[epoch == e] = _order(split.num_examples, seed, int(e))[place[epoch == e]]

    def decoded(places: Int64[np.ndarray, " k"]) -> Any:
        """`read`, for the examples at these places of the batch."""

        def seen(record: dict[str, Any], k: int) -> Any:
            if not crop_size:
                return decode_for_evaluation(split, record)
            i, image = places[k], record["image"]
            drawn = crop_size, seed, int(epoch[i]), int(index[i])
            if split.maps:
                return split.maps.decode_train(image, record["label"], *drawn)
            return decode.decode_train(image, *drawn)

        size = (crop_size, crop_size) if crop_size else None
        return read(split, index[places], seen, threads, size)

    image, label, bad = decoded(np.arange(batch_size))
    found, tried = list(bad.values()), 0
    places = np.array(list(bad), np.int64)
    while places.size:
        tried += 1
        if tried > _REPLACEMENTS:
            raise UserError(
                f"More than {_REPLACEMENTS} images in a row cannot be decoded; the last one: "
                f"{found[-1].sentence}"
            )
        index[places] = (index[places] + 1) % split.num_examples
        image[places], label[places], bad = decoded(places)
        found += bad.values()
        places = places[list(bad)]
    numbers = index if split.numbers is None else split.numbers[index]
    epoch = epoch.astype(np.int32)
    return {"image": image, "label": label, "index": numbers, "epoch": epoch, _BAD: found}


def _load_eval(
    step: int,
    *,
    split: Split,
    batch_size: int,
    process_index: int,
    process_count: int,
    threads: int,
) -> dict[str, Any]:
    first = (step * process_count + process_index) * batch_size
    index = first + np.arange(batch_size, dtype=np.int64)
    mask = index < split.num_examples
    index[~mask] = -1
    image = np.zeros((batch_size, *split.image_shape), np.uint8)
    label = np.full((batch_size, *split.label_shape), -1, np.int32)
    bad: dict[int, Undecodable] = {}
    if mask.any():
        image[mask], label[mask], bad = read_for_evaluation(split, index[mask], threads)
    # What is no example comes last, so that places among the examples are those in the batch.
    label[list(bad)], mask[list(bad)] = -1, False
    return {"image": image, "label": label, "index": index, "mask": mask, _BAD: [*bad.values()]}


def _reported(batches: Loading, split: Split) -> Iterator[Batch]:
    """The batches; says at their end which images could not be decoded."""
    bad: list[Undecodable] = []
    with contextlib.closing(batches):
        for batch in batches:
            bad += batch.pop(_BAD)
            yield batch
    if bad:
        report_left_out(split.title, split.num_examples, bad)


@functools.lru_cache(maxsize=2)
def _order(num_examples: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    return np.random.default_rng((Stream.ORDER, seed, epoch)).permutation(num_examples)


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
