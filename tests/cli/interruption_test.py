"""Ctrl-C in evaluate.py, for real and at several moments."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

SENTENCE = (
    "\nInterrupted: no file is half written; the same command evaluates the run from the start.\n"
)
# JAX has such callbacks: what they raise is printed and forgotten, and the program goes on.
LOST = """
import signal, sys, threading
from urnet_jax.cli.interruption import end_at_once_on_ctrl_c

# What a shell starts in the background ignores Ctrl-C, and so do the tests that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
if "--safe" in sys.argv:
    end_at_once_on_ctrl_c("It ends here.")
print("so far")

class Collected:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        threading.Event().wait(0.01)

Collected()
if "--safe" in sys.argv:
    threading.Event().wait()
sys.exit(3)
"""


def test_ctrl_c_is_not_lost_in_a_callback():
    command = [sys.executable, "-c", LOST]
    python = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert python.returncode == 3 and "KeyboardInterrupt" in python.stderr
    safe = subprocess.run([*command, "--safe"], capture_output=True, text=True, timeout=300)
    assert (safe.returncode, safe.stdout) == (130, "so far\n")
    assert safe.stderr == "\nIt ends here.\n"


@pytest.mark.parametrize(
    "tenths", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 80, 7))]
)
def test_an_interrupted_evaluation_ends_with_one_sentence(tenths, finished, start, tmp_path):
    flags = [f"--workdir={finished}", "--output=out", "--report"]
    with start("evaluate.py", *flags, cwd=tmp_path) as process:
        wait_for_the_folder(tmp_path / "out", process)  # The network is compiled next.
        time.sleep(tenths / 10)  # So far into the evaluation, which may be over by then.
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    if "report.html" in printed:  # All was done, and Python may have been on its way out.
        assert tenths > 0 and process.returncode in (0, 130, -signal.SIGINT)
    else:
        assert (process.returncode, errors) == (130, SENTENCE)
    if (tmp_path / "out" / "eval.json").exists():
        json.loads((tmp_path / "out" / "eval.json").read_text())


def wait_for_the_folder(folder: pathlib.Path, process: subprocess.Popen[str]) -> None:
    while not folder.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
