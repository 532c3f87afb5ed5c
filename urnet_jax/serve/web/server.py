"""A server of one network, from its folder to the signal that ends it."""

import contextlib
import math
import signal
import socket
from typing import Any, Literal

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from urnet_jax.errors import UserError
from urnet_jax.serve.schedule.policy import Policy
from urnet_jax.serve.web.app import App
from urnet_jax.serve.web.options import Options, application

KEEP_ALIVE_S = 75
"""A connection is closed so long after its last answer."""

HEADER_S = 10.0
"""And a new one, or one with half a header, so long after that."""

END_S = 30
"""What was taken is answered so long after a signal and the deadline; then it is given up."""

FILES = 64
"""That a process needs beside connections."""

MOST_CONNECTIONS = 4096
"""Beyond them requests get a 503 at once."""


def serve(
    options: Options, *, host: str = "127.0.0.1", port: int = 8000, policy: Policy | None = None
) -> None:
    """Serves a network until SIGTERM or Ctrl-C, after which it answers what it took.

    Args:
      options: which network, and how.
      host: the address that is listened at.
      port: 0 takes any that is free.
      policy: chooses S and batches; by default `schedule.policy.Bending`.

    Raises:
      UserError: there is no such network, it cannot be served here, or the port is taken.
    """
    _ = options.model  # Refused before anything that takes long.
    with contextlib.closing(bind(host, port)) as taken:
        predictor = options.load()
        print(f"{predictor.arch.describe()}, step {predictor.bundle.meta.step}")
        print("Compiling for batches of "
              f"{', '.join(map(str, predictor.batch_sizes))} images ...", flush=True)  # fmt: skip
        app = application(options, predictor, policy)
        try:
            _run(app, taken, options.deadline_ms)
        finally:
            app.engine.stop()


def bind(host: str, port: int) -> socket.socket:
    """Takes the port before anything that takes long; nobody is listened to yet.

    Raises:
      UserError: it is taken, or not one of this machine's.
    """
    try:
        (family, *_), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        taken = socket.socket(family, socket.SOCK_STREAM)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
        return taken
    except OSError as error:
        raise UserError(
            f"--host {host} and --port {port} cannot be listened at ({error.strerror or error}): "
            "name others; --port=0 takes any port that is free."
        ) from error


class _Server(uvicorn.Server):
    """Says when it is ready: once it listens, and heeds signals."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        app: Any = self.config.app
        host, port = (sockets or [])[0].getsockname()[:2]
        announce(host, port, app.settings.name, app.settings.deadline_ms)


def announce(host: str, port: int, model: str, deadline_ms: float) -> None:
    """Says where it answers."""
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(
        f"Ready: {address}/ is a page, {address}/v2/models/{model}/infer answers, by default "
        f"within {deadline_ms:g} ms. Ctrl-C ends it.", flush=True,
    )  # fmt: skip


class _Impatient(HttpToolsProtocol):
    """Closes a connection on which no whole header comes; Uvicorn waits for it for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer: Any = self.loop.call_later(HEADER_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def _run(app: App, taken: socket.socket, deadline_ms: float) -> None:
    """Answers until a signal comes."""
    config = uvicorn.Config(
        app, http=_Impatient, loop=_loop(), lifespan="on", log_level="error", access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE_S, backlog=2048,
        limit_concurrency=_most_connections(),
        timeout_graceful_shutdown=math.ceil(deadline_ms / 1000 + END_S),
    )  # fmt: skip
    server = _Server(config)

    def end(*_: Any) -> None:
        server.should_exit = True

    # Uvicorn ends in good order at these, and then raises them again for whoever stood there
    # before: this, so that the process ends well, and so that a signal before Uvicorn is there
    # counts too.
    before: Any = {s: signal.signal(s, end) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[taken])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    lost = app.came - app.answered
    given_up = f"{lost:,} others are lost." if lost else "none is lost."
    print(f"Stopped: {app.answered:,} requests are answered, {given_up}", flush=True)


def _most_connections() -> int:
    """Connections that there are files for, `MOST_CONNECTIONS` at most."""
    try:
        import resource
    except ImportError:  # not on Windows
        return MOST_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(MOST_CONNECTIONS, soft - FILES))


def _loop() -> Literal["uvloop", "asyncio"]:
    """Not everywhere is there a uvloop."""
    try:
        import uvloop  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return "asyncio"
    return "uvloop"
