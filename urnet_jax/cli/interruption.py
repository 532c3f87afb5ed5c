"""Ctrl-C in commands that have nothing to save."""

import contextlib
import os
import signal
import sys
import threading

EXIT_INTERRUPTED = 130


def end_at_once_on_ctrl_c(sentence: str) -> None:
    """From now on Ctrl-C prints `sentence` on stderr and ends the process, with exit code 130.

    Python's own way does not do for JAX. It waits for a compilation to end, loses a Ctrl-C that
    falls into one of JAX's callbacks, and tears the interpreter down while XLA's threads still
    run, which ends in a segmentation fault. So a thread hears of the signal, and ends the process
    without a teardown. Call this before anything starts, from the main thread.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)

    def wait() -> None:
        while signal.SIGINT not in os.read(heard, 64):
            pass  # Other signals are told of, too.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os.write(2, f"\n{sentence}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=wait, name="ctrl-c", daemon=True).start()
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    # Python must have a handler of its own, or it would not tell; the thread is what acts.
    signal.signal(signal.SIGINT, lambda number, frame: None)
