r"""What HTTP costs: beside the engine's own time, and beside Uvicorn's hello world.

    urnet calibrate --workdir=runs/cifar10_resnet20
    python benchmarks/serving_http.py --workdir=runs/cifar10_resnet20

Servers and sender share this machine.

--workdir       a calibrated run, measured on this device
--parts         of those below; default: all
                latency: requests of one image, one at a time: what passes beside the time that the
                engine says it took
                rate: requests in a second of a server whose network costs nothing, and of an
                application that says hello
--requests      of `latency` (default: 2000)
--connections   of `rate` (default: 32)
--seconds       of a round of `rate` (default: 4)
--rounds        of `rate`, over all servers in turn (default: 5)
--output        the folder of the record (default: runs/benchmarks/serving_http; what is to be kept
                in the repository: results/serving_http)
--fresh         measures again what is there already
--time_limit_s  after these seconds nothing further is started
"""

import asyncio
import json
import pathlib
import sys
import time
from collections.abc import Sequence

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from absl import flags

from benchmarks import results, serving_parts
from benchmarks.serving_client import Connection
from benchmarks.serving_process import ServerProcess, requests
from urnet_jax.errors import UserError, told_to_the_user

PARTS = ("latency", "rate")
BARE = str(pathlib.Path(__file__).with_name("serving_bare.py"))
GAP_S = 0.002
"""Between requests of `latency`."""


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user("Interrupted: the same command goes on where it was stopped."):
        serving_parts.measure(
            parse(list(argv)),
            {
                "latency": (latency, ["requests"]),
                "rate": (rate, ["connections", "seconds", "rounds"]),
            },
        )


def parse(argv: list[str]) -> flags.FlagValues:
    """See `serving_parts.parse`."""
    return serving_parts.parse(
        argv, __doc__ or "", "serving_http", PARTS,
        {"requests": 2000, "connections": 32, "rounds": 5}, {"seconds": 4.0},
    )  # fmt: skip


def latency(values: flags.FlagValues) -> tuple[list[results.Row], dict[str, str]]:
    """Milliseconds of requests of one image, one at a time."""
    sent = requests(values.workdir, 1)
    with ServerProcess.of(values.workdir) as server:
        found = asyncio.run(_one_at_a_time(server.port, sent, values.requests))
    whole, engine = found.T
    beside = whole - engine
    row = {"bytes": len(sent[0])}
    for name, ms in (("whole", whole), ("engine", engine), ("http", beside)):
        row[f"{name}_p50_ms"], row[f"{name}_p99_ms"] = np.quantile(ms, (0.5, 0.99)).tolist()
    return [row], {"beside the engine, p50": f"{row['http_p50_ms']:.2f} ms"}


async def _one_at_a_time(port: int, sent: list[bytes], count: int) -> np.ndarray:
    """Of each request what it took, and of that the engine by its own account; in ms, [n, 2]."""
    connection, found = Connection(port), []
    for k in range(count + len(sent)):
        await asyncio.sleep(GAP_S)
        start = time.perf_counter()
        status, body, length = await connection.ask(sent[k % len(sent)])
        took_ms = 1e3 * (time.perf_counter() - start)
        if status != 200:
            raise UserError(f"The server answered with {status}: {body.decode()}")
        told = json.loads(body[:length])["parameters"]
        found.append((took_ms, told["queue_ms"] + told["compute_ms"]))
    return np.array(found[len(sent) :])  # The first only warm up.


def rate(values: flags.FlagValues) -> tuple[list[results.Row], dict[str, str]]:
    """Answers in a second, by rounds over all servers."""
    image = requests(values.workdir, 1)
    plain = [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    with (
        ServerProcess(BARE, "nothing", values.workdir) as nothing,
        ServerProcess(BARE, "hello") as hello,
    ):
        asked = {
            "a network that costs nothing": (nothing.port, image),
            "hello, to the same requests": (hello.port, image),
            "hello": (hello.port, plain),
        }
        found = {name: [] for name in asked}
        for _ in range(values.rounds):
            for name, (port, sent) in asked.items():
                found[name].append(asyncio.run(_closed_loop(port, sent, values)))
    rows = []
    for name, rounds in found.items():
        per_s, cpu = np.median(rounds, axis=0).tolist()
        rows.append({"server": name, "per_s": per_s, "sender_cpu_share": cpu})
    return rows, {row["server"]: f"{row['per_s']:.0f} /s" for row in rows}


async def _closed_loop(
    port: int, sent: list[bytes], values: flags.FlagValues
) -> tuple[float, float]:
    """Answers in a second, one request after another on each connection; the sender's CPU share."""
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    until = start + values.seconds

    async def one() -> None:
        nonlocal count
        connection = Connection(port)
        while time.perf_counter() < until:
            status, body, _ = await connection.ask(sent[count % len(sent)])
            if status != 200:
                raise UserError(f"A server answered with {status}: {body.decode()}")
            count += 1

    await asyncio.gather(*(one() for _ in range(values.connections)))
    took = time.perf_counter() - start
    return count / took, (time.process_time() - cpu) / took


if __name__ == "__main__":
    main(sys.argv)
