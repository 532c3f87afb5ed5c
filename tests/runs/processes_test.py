"""What the processes of one run do together in its workdir, without training."""

import os
import pathlib
import socket
import subprocess
import sys

from urnet_jax.runs import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = """
import contextlib, pathlib, sys
import jax
import numpy as np
from helpers.pretrained_networks import variables
from urnet_jax import config as config_lib
from urnet_jax.errors import UserError
from urnet_jax.runs.checkpoint import Checkpointer
from urnet_jax.runs.load import load_network
from urnet_jax.runs.lock import locked
from urnet_jax.runs.meta import Meta
from urnet_jax.xla import sharding

address, process_id, workdir, output = sys.argv[1:]
sharding.start_distributed(address, 2, int(process_id))
config = config_lib.load("digits")
trees = jax.tree.map(np.asarray, variables(config_lib.architecture(config)))
params, batch_stats = sharding.replicate(trees, sharding.make_mesh())
try:
    with locked(workdir):
        state = {"params": params, "batch_stats": batch_stats}
        with contextlib.closing(Checkpointer(workdir, keep=1)) as checkpointer:
            checkpointer.save(state, Meta(1, "joint", 1, 11, 2.5, config))
            checkpointer.add_score(1, 12.5)
            loaded = load_network(workdir, "best")
        same = jax.tree.map(lambda one, other: bool((one == other).all()), loaded[1:], trees)
        assert all(jax.tree.leaves(same))
        said = loaded.meta.top1_percent
except UserError as error:
    said = error
pathlib.Path(output).write_text(str(said))
"""


def run_two(tmp_path: pathlib.Path, *folders: str, workdir: str) -> list[str]:
    """What each of two processes says, which are started in these folders."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    # A file, for native libraries print too.
    outputs = [tmp_path / f"said_by_{k}.txt" for k in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(k), workdir, str(outputs[k])],
            cwd=tmp_path / folder, env=os.environ | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for k, folder in enumerate(folders)
    ]  # fmt: skip
    for process in processes:
        with process:
            printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0, printed
    return [output.read_text() for output in outputs]


def test_two_processes_save_score_and_load_together(tmp_path):
    assert run_two(tmp_path, ".", ".", workdir="run") == ["12.5", "12.5"]
    assert checkpoint.read_meta(tmp_path / "run", 1).top1_percent == 12.5
    checkpoint.check_files(tmp_path / "run", 1)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoints"]


def test_processes_that_see_different_folders_are_refused(tmp_path):
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    sentence = (
        "The workdir new/run is not the same folder on all hosts of this run: name one on a disk "
        "that all of them see, with its whole path."
    )
    assert run_two(tmp_path, "one", "other", workdir="new/run") == [sentence, sentence]
    assert not list(tmp_path.glob("*/*"))
