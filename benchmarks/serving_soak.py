r"""A server for long: a million requests, minutes beyond what it can carry, and stops under load.

    urnet calibrate --workdir=runs/digits
    python benchmarks/serving_soak.py --workdir=runs/digits

Starts `urnet serve` itself and watches its process: memory, threads and open files. Server and
sender share this machine.

--workdir       a calibrated run, measured on this device
--parts         of those below; default: all
                many: requests of one image, one after another on some connections
                overload: ten times what the smallest S can carry, then half of what S = 1 can
                stops: SIGTERM under load, again and again: is what was taken answered?
--requests      of `many` (default: 1000000)
--minutes       of `overload` (default: 10)
--stops         of `stops` (default: 50)
--rows          images of a request of `overload` (default: 16)
--deadline_ms   of each request of `overload` (default: 100)
--connections   of `many` and `stops` (default: 32)
--output        the folder of the record (default: runs/benchmarks/serving_soak; what is to be kept
                in the repository: results/serving_soak)
--fresh         measures again what is there already
--time_limit_s  after these seconds nothing further is started
"""

import asyncio
import collections
import itertools
import pathlib
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from absl import flags
from tqdm import tqdm

from benchmarks import results, serving_parts
from benchmarks.serving_client import CONNECTIONS, LATE_S, Connection
from benchmarks.serving_process import ServerProcess, requests
from urnet_jax.errors import told_to_the_user
from urnet_jax.runs import export
from urnet_jax.serve import budgets
from urnet_jax.serve.schedule.costs import Costs

PARTS = ("many", "overload", "stops")

RATIO = 10.0
"""Of the load beyond what can be carried to what can be."""

RECOVERY_S = 10
"""How long is watched what follows."""

LOADED_S = 0.5
"""A stop comes after so long under load."""


def main(argv: Sequence[str]) -> None:
    """Runs the command line."""
    with told_to_the_user("Interrupted: the same command goes on where it was stopped."):
        serving_parts.measure(
            parse(list(argv)),
            {
                "many": (many, ["requests", "connections"]),
                "overload": (overload, ["minutes", "rows", "deadline_ms"]),
                "stops": (stops, ["stops", "connections"]),
            },
        )


def parse(argv: list[str]) -> flags.FlagValues:
    """See `serving_parts.parse`."""
    return serving_parts.parse(
        argv, __doc__ or "", "serving_soak", PARTS,
        {"requests": 1_000_000, "stops": 50, "rows": 16, "connections": 32},
        {"minutes": 10.0, "deadline_ms": 100.0},
    )  # fmt: skip


def many(values: flags.FlagValues) -> tuple[list[results.Row], dict[str, str]]:
    """Requests one after another on each connection; what the process holds meanwhile."""
    sent = requests(values.workdir, 1)
    with ServerProcess.of(values.workdir) as server:
        bar = tqdm(total=values.requests, unit="request")
        found = asyncio.run(_closed_loop(server, sent, values, bar))
        bar.close()
    row = {"per_s": values.requests / found["seconds"], **found}
    return [row], {"per_s": f"{row['per_s']:.0f}", "statuses": str(row["statuses"])}


async def _closed_loop(
    server: ServerProcess, sent: list[bytes], values: flags.FlagValues, bar: Any
) -> results.Row:
    statuses: collections.Counter[int] = collections.Counter()
    left: Iterator[int] = iter(range(values.requests))

    async def one() -> None:
        connection = Connection(server.port)
        for k in left:
            try:
                status, *_ = await connection.ask(sent[k % len(sent)])
            except (OSError, asyncio.IncompleteReadError):
                status, connection = -1, Connection(server.port)
            statuses[status] += 1
            bar.update()

    watching = asyncio.ensure_future(_watch(server))
    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(values.connections)))
    seconds = time.perf_counter() - began
    watching.cancel()
    return {"seconds": seconds, "statuses": dict(statuses), **server.watched()}


async def _watch(server: ServerProcess) -> None:
    while True:
        server.look()
        await asyncio.sleep(1.0)


def overload(values: flags.FlagValues) -> tuple[list[results.Row], dict[str, str]]:
    """Ten times the load that the smallest S carries, and then a light one."""
    bundle = export.bundle_of(values.workdir, "newest")
    costs = Costs(budgets.profile_here(bundle, "--workdir"))
    least, most = 1 / (values.rows * costs.seconds_per_row(costs.scales[[0, -1]]))
    load, light, seconds = RATIO * float(least), float(most) / 2, 60 * values.minutes
    rng = np.random.default_rng(0)
    heavy = np.sort(rng.uniform(0, seconds, rng.poisson(load * seconds)))
    after = seconds + np.sort(rng.uniform(0, RECOVERY_S, rng.poisson(light * RECOVERY_S)))
    sent = requests(values.workdir, values.rows)
    with ServerProcess.of(values.workdir, f"--deadline_ms={values.deadline_ms}") as server:
        found = asyncio.run(_open_loop(server, sent, np.concatenate([heavy, after])))
    status, latency_ms, delay = found
    during = np.arange(len(status)) < len(heavy)
    answered, sent_at_all = status == 200, status != 0
    held, late = latency_ms[during & answered], np.flatnonzero(~during & ~answered)
    times = after[late - len(heavy)] - seconds
    row = {
        "load_per_s": load, "due": int(during.sum()), "sent": int((during & sent_at_all).sum()),
        "sent_late": float((delay[sent_at_all] > LATE_S).mean()),
        "answered": int(len(held)), "shed": int((status[during] == 503).sum()),
        "others": {str(k): int((status == k).sum()) for k in set(status.tolist()) - {0, 200, 503}},
        "p50_ms": float(np.median(held)) if len(held) else None,
        "p99_ms": float(np.percentile(held, 99)) if len(held) else None,
        "in_time": float((held <= values.deadline_ms).mean()) if len(held) else None,
        "last_shed_s_after": float(times.max()) if len(times) else 0.0, **server.watched(),
    }  # fmt: skip
    notes = {name: str(row[name]) for name in ("p99_ms", "in_time", "last_shed_s_after")}
    return [row], notes


async def _open_loop(
    server: ServerProcess, sent: list[bytes], times: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Status, milliseconds from when it was due, and how late it was sent, of each request.

    One for which no connection is free is not sent, and its status 0: the sender is not what is
    measured here.
    """
    count = len(times)
    status, latency_ms, delay = np.zeros(count, int), np.full(count, np.nan), np.zeros(count)
    free = [Connection(server.port) for _ in range(CONNECTIONS)]
    watching, tasks = asyncio.ensure_future(_watch(server)), set()
    start = time.perf_counter()

    async def one(k: int, connection: Connection) -> None:
        delay[k] = time.perf_counter() - start - times[k]
        try:
            status[k], *_ = await connection.ask(sent[k % len(sent)])
        except (OSError, asyncio.IncompleteReadError):
            status[k], connection = -1, Connection(server.port)
        free.append(connection)
        latency_ms[k] = 1e3 * (time.perf_counter() - start - times[k])

    for k in tqdm(range(count), unit="request"):
        if (left := times[k] - (time.perf_counter() - start)) > 0:
            await asyncio.sleep(left)
        if not free:
            await asyncio.sleep(0)
            continue
        task = asyncio.create_task(one(k, free.pop()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    watching.cancel()
    return status, latency_ms, delay


def stops(values: flags.FlagValues) -> tuple[list[results.Row], dict[str, str]]:
    """SIGTERM under load; what the server says it answered, and what the sender has."""
    rows: list[results.Row] = []
    sent = requests(values.workdir, 1)
    for _ in tqdm(range(values.stops), unit="stop"):
        with ServerProcess.of(values.workdir, "--deadline_ms=60000") as server:
            received = asyncio.run(_until_stopped(server, sent, values.connections))
            said = server.process.communicate(timeout=120)[0]
        match = re.search(r"Stopped: ([\d,]+) requests are answered, none is lost\.", said)
        answered = int(match[1].replace(",", "")) if match else -1
        rows.append({"answered": answered, "received": received})
    lost = sum(row["answered"] != row["received"] for row in rows)
    return rows, {"stops": str(len(rows)), "with a loss": str(lost)}


async def _until_stopped(server: ServerProcess, sent: list[bytes], connections: int) -> int:
    """Answers that came until there was nobody left to ask."""
    received = 0

    async def one() -> None:
        nonlocal received
        connection = Connection(server.port)
        for k in itertools.count():
            try:
                await connection.ask(sent[k % len(sent)])
            except (OSError, asyncio.IncompleteReadError):
                return
            received += 1

    running = asyncio.gather(*(one() for _ in range(connections)))
    await asyncio.sleep(LOADED_S)
    server.process.send_signal(signal.SIGTERM)
    await running
    return received


if __name__ == "__main__":
    main(sys.argv)
