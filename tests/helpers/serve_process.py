"""A real server in a process of its own, for the tests that ask one."""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import numpy as np

FLAGS = ("--port=0", "--batch_sizes=1,4,16", "--deadline_ms=60000", "--name=digits")


class CutShort(Exception):
    """An answer whose status came, and not all of its body."""

    def __init__(self, status: int) -> None:
        super().__init__(f"Of an answer of status {status} not all came.")
        self.status = status


class Server:
    """A server that runs, and its address."""

    def __init__(self, workdir: pathlib.Path, *flags: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "urnet_jax", "serve", f"--workdir={workdir}", *FLAGS, *flags],
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if match := re.match(r"Ready: http://127.0.0.1:(\d+)/", line):
                self.port = int(match[1])
                return
        raise AssertionError(self.process.communicate()[1])

    def ask(
        self, path: str, content: Any = None, method: str = "", headers: Any = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, the body as JSON where it is that, and headers.

        Raises:
          CutShort: the server went away within the body.
          OSError, http.client.HTTPException: there was no answer.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        if content is not None and not isinstance(content, bytes):
            content = json.dumps(content).encode()
        method = method or ("GET" if content is None else "POST")
        connection.request(method, path, content, headers or {})
        response = connection.getresponse()
        try:
            found = response.read()
        except (http.client.IncompleteRead, ConnectionError) as error:
            raise CutShort(response.status) from error
        finally:
            connection.close()
        is_json = response.headers["content-type"] == "application/json"
        told = {name.lower(): value for name, value in response.headers.items()}
        return response.status, json.loads(found) if is_json else found, told

    def stop(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGTERM)
        printed, errors = self.process.communicate(timeout=120)
        return self.process.returncode, printed, errors


def request(images: np.ndarray, **parameters: Any) -> dict[str, Any]:
    """What asks for the classes of images, as JSON."""
    tensor = {
        "name": "images", "shape": list(images.shape), "datatype": "UINT8",
        "data": images.ravel().tolist(),
    }  # fmt: skip
    return {"inputs": [tensor], "parameters": parameters}
