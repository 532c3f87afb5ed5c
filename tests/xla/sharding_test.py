"""How the processes of a run find one another, and what they agree on."""

import os
import pathlib
import random
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

JOIN = """
import jax
from urnet_jax.xla import sharding
sharding.start_distributed()
print(jax.process_index(), jax.process_count(), sharding.make_mesh().size,
      sharding.decided_by_main(jax.process_index() + 7), sharding.on_all(True),
      sharding.on_all(jax.process_index() == 0))
"""


def run_two(arguments, folders, environments):
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments(k)], cwd=folders[k], text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | environments[k],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for k in range(2)
    ]  # fmt: skip
    return [(*p.communicate(timeout=240), p.returncode) for p in processes]


def free_port(low=1, high=1):
    """Any free port, or one of low to high."""
    while True:
        with socket.socket() as free:
            try:
                free.bind(("localhost", random.randint(low, high) if high > low else 0))
            except OSError:
                continue
            return free.getsockname()[1]


def test_slurm_tells_the_processes_where_the_others_are():
    # JAX makes the coordinator's port from the job's number.
    job = free_port(61440, 65535) - 61440
    common = {
        "SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "1", "JAX_NUM_CPU_DEVICES": "2",
    }  # fmt: skip
    done = run_two(
        lambda k: ["-c", JOIN], [ROOT, ROOT],
        [common | {"SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)} for k in range(2)],
    )  # fmt: skip
    for k, (printed, errors, code) in enumerate(done):
        assert code == 0, errors
        assert f"{k} 2 4 7 True False" in printed


@pytest.mark.slow
def test_hosts_that_do_not_share_the_workdir_are_an_error(tmp_path):
    address = f"--coordinator=localhost:{free_port()}"
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    done = run_two(
        lambda k: [
            str(ROOT / "train.py"), "--config=digits", "--workdir=run", "--distributed", address,
            "--num_processes=2", f"--process_id={k}",
        ],
        folders, [{}, {}],
    )  # fmt: skip
    for printed, errors, code in done:
        assert code == 2, printed + errors
        assert "error: The workdir run is not the same folder on all hosts" in errors
