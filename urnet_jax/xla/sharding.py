"""Devices and hosts: how they find one another, and how arrays lie on them.

There is one mesh axis, `data`. A batch is split over all devices of all hosts, in the order of its
examples; everything else is on every device. So BatchNorm's statistics in training are those of the
global batch, whatever the number of devices.
"""

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from urnet_jax.errors import Stopped, UserError

EXIT_PEER_GONE = 76

HEARTBEAT_TIMEOUT_S = 30
"""A process that was not heard of for so long is taken for dead."""

_LOST_PEER = re.compile(
    r"^(UNAVAILABLE|DEADLINE_EXCEEDED)\b|\bgloo\b|heartbeat|coordination ?service|"
    r"connection (reset|refused|closed|timed out)|broken pipe|socket closed|remote process exited",
    re.IGNORECASE,
)
"""What the libraries that join processes (gRPC, Gloo, NCCL) say of one that they cannot reach."""


def start_distributed(
    coordinator: str = "", num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes of a run; to be called before anything asks JAX for its devices.

    Args:
      coordinator: host:port of process 0; empty where the environment says it (Cloud TPU, Slurm,
        Open MPI and whatever else `jax.distributed.initialize` detects).
      num_processes: of the run, where the environment does not say it.
      process_id: this one's number, from 0, likewise.

    Raises:
      UserError: the environment does not say it, or the others do not answer.
    """
    try:
        jax.distributed.initialize(
            coordinator or None, num_processes, process_id,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"The processes of this run did not find one another ({reason}): name the same "
            "--coordinator=HOST:PORT and --num_processes on every host, and another --process_id "
            "on each."
        ) from error


def make_mesh() -> Mesh:
    """All devices of all hosts; a host's devices are neighbours, hosts in their order."""
    return Mesh(in_order(jax.devices()), ("data",))


def in_order(devices: Sequence[Any]) -> np.ndarray:
    """Devices by host, and by number on each host."""
    return np.array(sorted(devices, key=lambda device: (device.process_index, device.id)))


def platform(mesh: Mesh | None) -> str:
    """`cpu`, `gpu` or `tpu`: that of the mesh, without one JAX's default."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole of an array on every device."""
    return NamedSharding(mesh, P())


def split(mesh: Mesh) -> NamedSharding:
    """Equal parts of an array's first axis on the devices."""
    return NamedSharding(mesh, P("data"))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process holds, as global ones on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def global_batch(local: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The processes' parts of a batch as one that is split over all devices.

    Args:
      local: this process's part, [B / processes, ...] each; the k-th process holds the k-th part.
      mesh: of `make_mesh`.
    """
    where = split(mesh)
    return {
        name: jax.make_array_from_process_local_data(where, np.asarray(array))
        for name, array in local.items()
    }


def check_batch_size(batch_size: int, mesh: Mesh, accumulate_steps: int = 1) -> None:
    """Refuses a global batch that cannot be shared in equal parts.

    Raises:
      UserError: it is not a multiple of the number of devices times `accumulate_steps`.
    """
    parts = mesh.size * accumulate_steps
    if batch_size % parts:
        devices = f"{mesh.size} device{'s' if mesh.size > 1 else ''}"
        raise UserError(
            f"data.batch_size is {batch_size}, which {devices} cannot share in "
            f"accumulate_steps = {accumulate_steps} equal parts each; expected a multiple of "
            f"{parts}, as {max(1, round(batch_size / parts)) * parts}."
        )


@contextlib.contextmanager
def ended_with_its_peers() -> Iterator[None]:
    """Ends this process at once where one of several fails: an ordinary end waits for the others.

    Where another process of the run is gone it says so in one sentence, with EXIT_PEER_GONE. An
    error of this process is shown with its traceback, with exit code 1; the others then end
    likewise. What is told to the user in one sentence, and all errors of a process that is alone,
    are raised as they are.
    """
    try:
        yield
    except (UserError, Stopped):
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        sys.stdout.flush()
        if not comes_of_a_lost_peer(error):
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        print(
            f"error: Another process of this run is gone: start all of them again, and they go on "
            f"from the last checkpoint ({_first_line(error)[:200]}).",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(EXIT_PEER_GONE)


def comes_of_a_lost_peer(error: Exception) -> bool:
    """Whether an error says that another process cannot be reached."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        # The first line alone: a callback's error goes on with its traceback, which says anything.
        return _LOST_PEER.search(_first_line(error)) is not None
    # Waiting for the result of a sum over processes that failed raises a plain ValueError.
    return isinstance(error, ValueError) and "Gloo" in _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def only_main_speaks() -> Iterator[None]:
    """Drops what the other processes print on stdout; errors on stderr stay."""
    with contextlib.redirect_stdout(sys.stdout if is_main() else io.StringIO()):
        yield


def on_all(value: bool) -> bool:
    """Whether it is so on all processes; all must call it."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.int64(value))))


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """A UserError on one process ends all of them, which else would wait for it; all must enter.

    What is done inside must not wait for the others.
    """
    error = None
    try:
        yield
    except UserError as found:
        error = found
    together = on_all(error is None)
    if error is not None:
        raise error
    if not together:
        raise UserError("Another process of this run cannot go on; it says why.")


def listed_by_main(values: Sequence[int]) -> list[int]:
    """Process 0's values, on all processes; all must call it."""
    count = decided_by_main(len(values))
    own = [*values, *[0] * count][:count]
    return [decided_by_main(value) for value in own]


def decided_by_main(value: int) -> int:
    """Process 0's value, on all processes; all must call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int64(value)))
