"""Sends requests at fixed times, whatever the server does: a process of its own, on one thread.

It reads a plan from a file that NumPy wrote and writes what became of each request into another.
Latency counts from when a request was due to be sent: a server that is slow does not slow the load
down, and what is sent late is counted.
"""

import asyncio
import json
import sys
import time
from typing import Any

import numpy as np

CONNECTIONS = 256
"""At most; a request that finds none free waits for one, and is late."""

LATE_S = 0.005
"""A request that is sent later than this after it was due counts as sent late."""


class Connection:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._port, self._streams = port, None

    async def ask(self, content: bytes) -> tuple[int, bytes, int]:
        """Status, body, and how much of that is JSON; 0 where all is."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(content)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await reader.readexactly(int(headers["content-length"]))
        length = int(headers.get("inference-header-content-length", 0))
        return int(head.split(" ", 2)[1]), body, length


def contents(plan: Any) -> list[bytes]:
    """The requests as they go over the wire."""
    found = []
    rows, images = int(plan["rows"]), plan["images"]
    address = str(plan["address"])
    for k in range(len(plan["times"])):
        part = images[(np.arange(rows) + k * rows) % len(images)]
        raw = part.tobytes()
        tensor = {"name": "images", "shape": list(part.shape), "datatype": "UINT8",
                  "parameters": {"binary_data_size": len(raw)}}  # fmt: skip
        asked = {"name": "classes", "parameters": {"binary_data": True}}
        parameters = json.loads(str(plan["parameters"]))
        asked_for = {"inputs": [tensor], "outputs": [asked], "parameters": parameters}
        text = json.dumps(asked_for).encode()
        head = (
            f"POST {address} HTTP/1.1\r\nHost: localhost\r\n"
            f"Inference-Header-Content-Length: {len(text)}\r\n"
            f"Content-Length: {len(text) + len(raw)}\r\n\r\n"
        )
        found.append(head.encode() + text + raw)
    return found


async def replay(plan: Any) -> dict[str, np.ndarray]:
    """Sends every request when it is due, and waits for all answers."""
    times, sent = plan["times"], contents(plan)
    count, rows = len(times), int(plan["rows"])
    latency, delay = np.full(count, np.nan), np.zeros(count)
    status, scale = np.zeros(count, int), np.full(count, np.nan)
    classes = np.full((count, rows), -1)
    free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    for _ in range(CONNECTIONS):
        free.put_nowait(Connection(int(plan["port"])))
    start = time.perf_counter() + 0.2

    async def one(k: int) -> None:
        connection = await free.get()
        delay[k] = time.perf_counter() - start - times[k]
        try:
            status[k], body, length = await connection.ask(sent[k])
        except (OSError, asyncio.IncompleteReadError):
            connection = Connection(int(plan["port"]))
            status[k], body, length = -1, b"", 0
        free.put_nowait(connection)
        latency[k] = time.perf_counter() - start - times[k]
        if status[k] == 200:
            told = json.loads(body[:length])
            scale[k] = told["parameters"]["scale_used"]
            classes[k] = np.frombuffer(body[length:], np.int32)

    tasks, began = [], time.process_time()
    for k in range(count):
        if (left := times[k] - (time.perf_counter() - start)) > 0:
            await asyncio.sleep(left)
        tasks.append(asyncio.create_task(one(k)))
    await asyncio.gather(*tasks)
    own = np.array(time.process_time() - began)
    return {"latency": latency, "delay": delay, "status": status, "scale": scale,
            "classes": classes, "own_cpu_s": own}  # fmt: skip


if __name__ == "__main__":
    with np.load(sys.argv[1]) as plan:
        found = asyncio.run(replay(dict(plan)))
    np.savez(sys.argv[2], **found)  # pyright: ignore[reportArgumentType]
