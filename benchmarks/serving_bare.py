"""Servers that ours is compared with: one whose network costs nothing, and one that says hello.

python benchmarks/serving_bare.py nothing WORKDIR
python benchmarks/serving_bare.py hello
"""

import pathlib
import socket
import sys
from typing import Any

# Run as a script, the repository's root is not where Python looks; it need not be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
import uvicorn

from urnet_jax.serve.predictor import Prediction, Predictor
from urnet_jax.serve.web import server
from urnet_jax.serve.web.options import Options


class Nothing(Predictor):
    """Says of every image what its network said of one that is black, and runs no network."""

    def __init__(self, bundle: Any, **settings: Any) -> None:
        super().__init__(bundle, **settings)
        self._said = super().predict(np.zeros((1, *self.image_shape), np.float32), np.ones(1, "f"))

    def predict(self, images: np.ndarray, scales: np.ndarray) -> Prediction:
        """The same for each image, but for its S."""
        one, n = self._said, len(images)
        return Prediction(
            classes=np.repeat(one.classes, n),
            probabilities=np.repeat(one.probabilities, n, axis=0),
            gates=np.repeat(one.gates, n, axis=0),
            flops=np.repeat(one.flops, n),
            scale=scales,
        )


class Free(Options):
    """Options of a server whose network costs nothing."""

    def load(self) -> Predictor:
        """The network's description, and an answer."""
        return Nothing(super().load().bundle, batch_sizes=self.batch_sizes)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """The least that an ASGI application can be."""
    if scope["type"] == "http":
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"6")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello\n"})


class _Announcing(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"Ready: http://127.0.0.1:{(sockets or [])[0].getsockname()[1]}/", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "nothing":
        server.serve(Free(sys.argv[2], name="m", deadline_ms=60_000.0), port=0)
    else:
        config = uvicorn.Config(
            hello, http="httptools", loop="uvloop", lifespan="off", log_level="error",
            access_log=False,
        )  # fmt: skip
        _Announcing(config).run(sockets=[server.bind("127.0.0.1", 0)])
