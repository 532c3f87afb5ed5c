"""Loading ahead, in threads or in processes that end with their parent."""

import multiprocessing
import os
import signal
import threading
import weakref
from multiprocessing import shared_memory
from typing import Any

import grain
import numpy as np
from absl import flags

_AHEAD = 2  # batches that are loaded before they are asked for


class Loading:
    """An iterator over a dataset of batches, each of which is loaded before it is asked for.

    It is closed, and its threads and processes ended, by `close`, at its end, by an error, when
    nobody refers to it any more, and at the program's end.
    """

    def __init__(self, batches: grain.MapDataset, workers: int):
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
        loading = batches.to_iter_dataset(ahead)
        if workers:
            if not flags.FLAGS.is_parsed():
                # In a notebook nobody has parsed absl's flags, without which Grain starts no
                # process.
                flags.FLAGS.mark_as_parsed()
            loading = loading.map(_Parcel).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_begin_worker
            )
        iterator = iter(loading)
        if workers:
            iterator.get_state()  # Makes all workers now: `close` misses those that come later.
        self._iterator, self._started = iterator, False
        self._close = weakref.finalize(self, iterator.close)

    def __iter__(self) -> "Loading":
        return self

    def __next__(self) -> Any:
        try:
            self.start()
            return next(self._iterator)
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Begins to load, in all workers at once, if it has not begun."""
        if not self._started:
            self._iterator.start_prefetch()
        self._started = True

    def close(self) -> None:
        """Ends what loads; the second time this does nothing."""
        self._close()


class _Parcel:
    """A batch that goes to another process through shared memory, and is a plain one there.

    Grain's own arrays in shared memory live as long as anybody refers to them, and those that are
    left at a program's end are leaked. Here the memory is made only when a batch is sent, and has
    no name any more once it has arrived.
    """

    def __init__(self, batch: dict[str, Any]):
        self._batch = batch

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = {k: v for k, v in self._batch.items() if isinstance(v, np.ndarray)}
        others = {k: v for k, v in self._batch.items() if k not in arrays}
        size = sum(array.nbytes for array in arrays.values())
        memory, layout, offset = shared_memory.SharedMemory(create=True, size=size), {}, 0
        for name, array in arrays.items():
            np.ndarray(array.shape, array.dtype, memory.buf, offset)[...] = array
            layout[name] = array.shape, array.dtype, offset
            offset += array.nbytes
        memory.close()
        return _arrived, (memory.name, layout, others)


def _arrived(
    name: str, layout: dict[str, tuple[tuple[int, ...], np.dtype, int]], others: dict[str, Any]
) -> dict[str, Any]:
    """The batch of a `_Parcel`, in this process's own memory."""
    memory = shared_memory.SharedMemory(name)
    memory.unlink()
    batch = {
        key: np.ndarray(shape, dtype, memory.buf, offset).copy()
        for key, (shape, dtype, offset) in layout.items()
    }
    memory.close()
    return batch | others


def _begin_worker(index: int, count: int) -> None:
    """Runs first in a decoding process."""
    del index, count
    # Schedulers and terminals signal all processes of a run, but only the parent knows what to
    # finish first; it ends this one.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end_with_parent", daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process once its parent is gone, even if that was killed.

    Not by PR_SET_PDEATHSIG, which also fires at the end of the thread that started this process.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
