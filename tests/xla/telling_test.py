import threading
import time

import pytest

from urnet_jax.xla.telling import compiling, telling


def test_a_long_compilation_is_spoken_of_and_how_long_it_took(capsys):
    printed, deadline = "", time.monotonic() + 60
    with compiling("the step", slow_s=0.0):
        while "\n" not in printed and time.monotonic() < deadline:
            printed += capsys.readouterr().out
    assert printed == "Compiling the step (a minute or more for deep networks) ...\n"
    after = capsys.readouterr().out
    assert after.startswith("Compiled the step in ") and after.endswith(" s.\n")


def test_a_short_compilation_is_not_spoken_of_and_leaves_no_thread(capsys):
    before, seen = threading.enumerate(), []

    def step(number: int) -> int:
        seen.append(set(threading.enumerate()) - set(before))
        return number + 1

    told = telling(step, "the step", slow_s=3600.0)
    assert (told(1), told(2)) == (2, 3)
    # Only the first call compiles.
    assert [len(threads) for threads in seen] == [1, 0]
    assert threading.enumerate() == before
    with pytest.raises(ZeroDivisionError):
        telling(lambda: 1 // 0, "the step", slow_s=3600.0)()
    assert threading.enumerate() == before
    assert capsys.readouterr().out == ""
