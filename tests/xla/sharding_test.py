"""How the processes of a run find one another, and what they agree on."""

import os
import pathlib
import random
import signal
import socket
import subprocess
import sys

import jax
import pytest

from urnet_jax.errors import UserError
from urnet_jax.xla import sharding

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


RuntimeError_ = jax.errors.JaxRuntimeError


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError_("UNAVAILABLE: failed to connect to all addresses"), True),
        (RuntimeError_("DEADLINE_EXCEEDED: Barrier timed out. Id: stop::3"), True),
        (RuntimeError_("INTERNAL: Barrier failed: UNAVAILABLE: Task 1 heartbeat timeout."), True),
        (RuntimeError_("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [::1]:9"), True),
        (RuntimeError_("INTERNAL: Read error [127.0.0.1]:9: Connection reset by peer"), True),
        (RuntimeError_("INTERNAL: NCCL operation failed: remote process exited"), True),
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [::1]:9"), True),
        (RuntimeError_("INTERNAL: CpuCallback error calling callback: Traceback"), False),
        (RuntimeError_("INTERNAL: CpuCallback error: Traceback\nOSError: Connection reset"), False),
        (RuntimeError_("INTERNAL: Failed to allocate a buffer"), False),
        (RuntimeError_("FAILED_PRECONDITION: the array was donated"), False),
        (RuntimeError_("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), False),
        (RuntimeError_(""), False),
        (ValueError("UNAVAILABLE: Error reading gs://bucket/file"), False),
        (ConnectionResetError("Connection reset by peer"), False),
        (KeyError("Gloo"), False),
    ],
)
def test_which_errors_come_of_a_lost_peer(error, lost):
    assert sharding.comes_of_a_lost_peer(error) == lost


@pytest.mark.parametrize("error", [RuntimeError_("UNAVAILABLE: gone"), UserError("it is wrong.")])
def test_a_process_that_is_alone_raises_its_errors(error):
    with pytest.raises(type(error)), sharding.ended_with_its_peers():
        raise error


FAILS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from urnet_jax.errors import UserError
from urnet_jax.xla import sharding

def fails(total):
    raise KeyError("of its own")

ERRORS = {
    "callback": lambda: jax.jit(lambda x: jax.debug.callback(fails, x))(1.0),
    "python": lambda: fails(1.0),
}
sharding.start_distributed(sys.argv[1], 2, int(sys.argv[2]))
mesh = sharding.make_mesh()
x = sharding.global_batch({"x": np.ones(4, np.float32)}, mesh)["x"]
add = jax.jit(lambda x: x + x.sum())
with sharding.ended_with_its_peers():
    for step in range(1_000_000):
        x = add(x)
        x.block_until_ready()
        if step == 3 and not sharding.is_main():
            ERRORS[sys.argv[3]]()
            jax.effects_barrier()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["callback", "python"])
def test_a_process_shows_its_own_error_and_the_other_hears_of_it(kind):
    address = f"localhost:{free_port()}"
    main, other = run_two(
        lambda k: ["-c", FAILS, address, str(k), kind], [ROOT, ROOT], [{}, {}],
    )  # fmt: skip
    said = "Another process of this run is gone"
    _, errors, code = other
    assert code == 1, errors
    assert "Traceback" in errors and "of its own" in errors and said not in errors
    _, errors, code = main
    # Which comes first is chance: the sum that fails, or JAX's own heartbeat, which aborts.
    assert code in (sharding.EXIT_PEER_GONE, -signal.SIGABRT), errors
    assert said in errors or code != sharding.EXIT_PEER_GONE
