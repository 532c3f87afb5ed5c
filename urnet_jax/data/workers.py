"""Loading ahead, in threads or in processes that end with their parent."""

import multiprocessing
import os
import signal
import threading
import weakref
from typing import Any

import grain
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
            # Batches come through pipes. In shared memory, which Grain prefers, those that are on
            # their way when a program ends would be left behind; decoding costs far more.
            options = grain.experimental.DatasetOptions(min_shm_size=2**62)
            loading = grain.experimental.WithOptionsIterDataset(loading, options)
            loading = loading.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_begin_worker
            )
        iterator = iter(loading)
        if workers:
            iterator.get_state()  # Makes all workers now: `close` misses those that come later.
        self._iterator = iterator
        self._close = weakref.finalize(self, iterator.close)

    def __iter__(self) -> "Loading":
        return self

    def __next__(self) -> Any:
        try:
            return next(self._iterator)
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Begins to load, if it has not begun."""
        self._iterator.start_prefetch()

    def close(self) -> None:
        """Ends what loads; the second time this does nothing."""
        self._close()


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
