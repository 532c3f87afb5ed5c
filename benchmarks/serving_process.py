"""A server in a process of its own, what that process holds, and requests for it."""

import pathlib
import re
import subprocess
import sys
from types import TracebackType

import numpy as np

import urnet_jax
from benchmarks.serving_client import contents
from urnet_jax.errors import UserError

CONTENTS = 64
"""Different requests, of images that are drawn at random; they are sent again and again."""


def requests(workdir: str, rows: int) -> list[bytes]:
    """Some requests as they go over the wire."""
    shape = (CONTENTS * rows, *urnet_jax.load(workdir).image_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return contents({"times": np.zeros(CONTENTS), "images": images, "rows": rows,
                     "address": "/v2/models/m/infer", "parameters": "{}"})  # fmt: skip


class ServerProcess:
    """A server that is ready when the context begins, and ended with it."""

    def __init__(self, *arguments: str) -> None:
        """Starts nothing yet.

        Args:
          arguments: of Python; see `of`.
        """
        self._command = [sys.executable, *arguments]
        self._seen: dict[str, list[float]] = {"rss_mb": [], "threads": [], "files": []}

    @classmethod
    def of(cls, workdir: str, *flags: str) -> "ServerProcess":
        """`urnet serve` of a workdir; its model is `m`."""
        return cls("-m", "urnet_jax", "serve", f"--workdir={workdir}", "--port=0", "--name=m",
                   *flags)  # fmt: skip

    def __enter__(self) -> "ServerProcess":
        """Starts it.

        Raises:
          UserError: it did not start; it has said why.
        """
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if match := re.match(r"Ready: http://127.0.0.1:(\d+)/", line):
                self.port = int(match[1])
                return self
        raise UserError("The server did not start, for the reason that it says above.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self.process.poll() is None:
            self.process.terminate()
            self.process.communicate()

    def look(self) -> None:
        """Notes what the process holds now; nothing where there is no /proc."""
        folder = pathlib.Path(f"/proc/{self.process.pid}")
        try:
            status = (folder / "status").read_text()
            files = len(list((folder / "fd").iterdir()))
        except OSError:
            return
        found = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE))
        self._seen["rss_mb"].append(round(int(found["VmRSS"]) / 1024, 1))
        self._seen["threads"].append(int(found["Threads"]))
        self._seen["files"].append(files)

    def watched(self) -> dict[str, list[float]]:
        """What was noted, at most a hundred numbers of each kind."""
        return {
            name: seen[:: -(-len(seen) // 100)] if seen else [] for name, seen in self._seen.items()
        }
