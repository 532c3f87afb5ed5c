"""A server of one network, from its folder to the signal that ends it."""

import contextlib
import signal
import socket
from collections.abc import Sequence
from typing import Any, Literal

import uvicorn
from etils import epath

from urnet_jax.errors import UserError
from urnet_jax.serve.engine import Engine
from urnet_jax.serve.predictor import BATCH_SIZES, Predictor, load
from urnet_jax.serve.schedule.policy import Policy
from urnet_jax.serve.web.app import App
from urnet_jax.serve.web.http import Settings
from urnet_jax.serve.web.metrics import Metrics

KEEP_ALIVE_S = 75
"""A connection that asks nothing is closed after so long."""

MOST_CONNECTIONS = 4096
"""Beyond them requests get a 503 at once."""

NUMBER_BYTES = 24
"""Of a number as JSON, at most: what a body may hold for each of the numbers of a full batch."""


def serve(
    path: epath.PathLike,
    *,
    which: Literal["newest", "best"] | int = "newest",
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str = "",
    deadline_ms: float = 100.0,
    most_waiting: int = 1024,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    body_limit: int = 0,
    token: str = "",
    policy: Policy | None = None,
) -> None:
    """Serves a network until SIGTERM or Ctrl-C, after which it answers what it took.

    Args:
      path: the workdir of a run, or a bundle; calibrated, and measured on this device.
      which: of a workdir, its checkpoint.
      host: the address that is listened at.
      port: 0 takes any that is free.
      name: of the model in addresses; by default that of the folder.
      deadline_ms: of requests that name none.
      most_waiting: images that may wait.
      batch_sizes: for which the network is compiled.
      body_limit: bytes of a request's body; 0: enough for a full batch as JSON.
      token: that requests have to carry; empty: none.
      policy: chooses S and batches; by default `schedule.policy.Bending`.

    Raises:
      UserError: there is no such network, it cannot be served here, or the port is taken.
    """

    def loaded() -> Predictor:
        return load(path, which, batch_sizes=batch_sizes)

    listening = _listen(host, port)
    with contextlib.closing(listening):
        predictor = loaded()
        print(f"{predictor.arch.describe()}, step {predictor.bundle.meta.step}")
        print("Compiling for batches of "
              f"{', '.join(map(str, predictor.batch_sizes))} images ...", flush=True)  # fmt: skip
        metrics = Metrics()
        engine = Engine(predictor, policy=policy, most_rows=most_waiting, observe=metrics.observe)
        height, width, channels = predictor.image_shape
        numbers = predictor.batch_sizes[-1] * height * width * channels
        settings = Settings(
            name=name or epath.Path(path).resolve().name,
            deadline_ms=deadline_ms,
            body_limit=body_limit or max(1 << 20, NUMBER_BYTES * numbers),
            token=token,
            reload=loaded,
        )
        try:
            _run(App(engine, metrics, settings), listening, deadline_ms)
        finally:
            engine.stop()


def _listen(host: str, port: int) -> socket.socket:
    """Takes the port before anything that takes long."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(
            f"--host {host} and --port {port} cannot be listened at ({error.strerror or error}): "
            "name others; --port=0 takes any port that is free."
        ) from error


def _run(app: App, listening: socket.socket, deadline_ms: float) -> None:
    """Answers until a signal comes."""
    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(
        f"Ready: {address}/v2/models/{app.settings.name}/infer, deadline {deadline_ms:g} ms. "
        "Ctrl-C ends it.", flush=True,
    )  # fmt: skip
    config = uvicorn.Config(
        app, http="httptools", loop=_loop(), lifespan="on", log_level="error", access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE_S, limit_concurrency=MOST_CONNECTIONS,
        backlog=2048,
    )  # fmt: skip
    # Uvicorn ends in good order at these, and then raises them again for whoever stood there
    # before: nobody, so that the process ends well.
    before: Any = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print("Stopped: all that was taken is answered.", flush=True)


def _loop() -> Literal["uvloop", "asyncio"]:
    """Not everywhere is there a uvloop."""
    try:
        import uvloop  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return "asyncio"
    return "uvloop"
