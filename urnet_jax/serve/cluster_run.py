"""`urnet serve --ray`: the application from its start on a Ray to the signal that ends it."""

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from ray import serve  # pyright: ignore[reportMissingImports]
from ray.exceptions import (  # pyright: ignore[reportMissingImports]
    GetTimeoutError,
    RayError,
    RayTaskError,
)
from ray.serve.exceptions import RayServeException  # pyright: ignore[reportMissingImports]

from urnet_jax.errors import UserError
from urnet_jax.serve import budgets, cluster
from urnet_jax.serve.web.options import Options
from urnet_jax.serve.web.server import END_S, announce, bind

ENVIRONMENT = {
    # How long a router believes what it last heard of a replica's queue: Ray's ten seconds are
    # longer than a surge.
    "RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S": "0.2",
    # Ray would have replicas give way to whatever else the machine does.
    "RAY_worker_niceness": "0",
    # A library does not phone home in its user's name.
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Of a Ray that is started here; one that runs already has its own."""

CHECK_S = 600
"""In which the network has to be loaded once."""

POLL_S = 0.1
"""How often signals are looked for."""

PASS_ON_S = 0.5
"""Is left for proxies to write out what the last replica answered; Ray kills them after that."""


def run(options: Options, *, host: str, port: int, replicas: int) -> None:
    """Serves by several replicas until SIGTERM or Ctrl-C; SIGHUP takes the newest checkpoint.

    Joins the Ray that runs on this machine, or that RAY_ADDRESS names, or else starts one.

    Raises:
      UserError: there is no such network, it cannot be served there, or the port is taken.
    """
    name, told = options.model, _Told()
    application = cluster.build(options, replicas)
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with _joined(), told.heeded():
        host, port = _address(host, port)
        _check_there(options, replicas)
        print(f"Starting {replicas} replicas of {name} ...", flush=True)
        try:
            with _one_sentence(name):
                serve.start(http_options={"host": host, "port": port})
                serve.run(application, name=name)
            told.ready = True
            announce(host, port, name, options.deadline_ms)
            while not told.to_end:
                if told.take_update():
                    _update(options, replicas)
                time.sleep(POLL_S)
        finally:
            _end(name, options)
    print("Stopped.", flush=True)


class _Told:
    """Signals that came; until it is ready one that is to end it does so at once."""

    def __init__(self) -> None:
        self.ready = self.to_end = self._to_update = False

    def take_update(self) -> bool:
        """Whether an update was asked for since the last call."""
        asked, self._to_update = self._to_update, False
        return asked

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Has signals noted, and no more."""

        def heed(number: int, _: Any) -> None:
            if number == getattr(signal, "SIGHUP", None):
                self._to_update = True
            elif self.ready:
                self.to_end = True
            else:
                raise KeyboardInterrupt

        names = [n for n in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, n)]
        before: Any = {n: signal.signal(getattr(signal, n), heed) for n in names}
        try:
            yield
        finally:
            for n, handler in before.items():
                signal.signal(getattr(signal, n), handler)


@contextlib.contextmanager
def _joined() -> Iterator[None]:
    """A Ray for as long as it lasts; one that was started here ends with it."""
    for logger in ("ray", "ray.serve"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"No Ray can be joined or started ({_short(error)}): RAY_ADDRESS=local starts one, "
            "whatever else there is."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _address(host: str, port: int) -> tuple[str, int]:
    """Where Serve will listen; a UserError where it cannot, or does elsewhere already."""
    if not serve.status().proxies:
        with bind(host, port) as taken:  # Ray takes a port by its number alone.
            return taken.getsockname()[:2]
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"Serve runs on this Ray already, and not at {host}:{port} ({error}): give --host and "
            "--port as it has them, or end it by `serve shutdown`."
        ) from error
    return host, port


def _check_there(options: Options, replicas: int) -> None:
    """Fails where and as a replica would, before Ray tries and tries again, or waits for ever."""
    settled, needs = cluster.settled(options)
    wanted = dict(needs.get("resources", {}), GPU=needs.get("num_gpus", 0))
    for device, count in wanted.items():
        there = ray.cluster_resources().get(device, 0)
        if replicas * count > there:
            raise UserError(
                f"{replicas} replicas need {count:g} {device} each, and this Ray has {there:g}: "
                "ask for fewer, or calibrate the network on the devices that are there."
            )
    # max_calls: its process ends with it, and gives back the device.
    task = ray.remote(max_calls=1)(_check).options(**needs)
    try:
        ray.get(task.remote(settled), timeout=CHECK_S)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise UserError(f"It cannot be loaded on this Ray: {_short(error.cause)}") from error
    except (GetTimeoutError, RayError) as error:
        raise UserError(f"It cannot be loaded on this Ray: {_short(error)}") from error


def _check(options: Options) -> None:
    """Run where replicas will run: a UserError where they could not."""
    budgets.profile_here(options.load().bundle, "a server")


def _update(options: Options, replicas: int) -> None:
    """Takes the checkpoint that is meant now, replica by replica; else the old one goes on."""
    try:
        settled, _ = cluster.settled(options)
        _check_there(settled, 0)
        with _one_sentence(options.model):
            serve.run(cluster.build(settled, replicas), name=options.model)
        print(f"Every replica has taken step {settled.which}.", flush=True)
    except UserError as error:
        print(f"It is not updated: {error}", flush=True)


@contextlib.contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, TimeoutError, RayError, RayServeException) as error:
        raise UserError(f"Ray Serve cannot run {name}: {_short(error)}") from error


def _short(error: Any) -> str:
    return " ".join(str(error).split())[:300]


def _end(name: str, options: Options) -> None:
    """Has what was taken answered, and Serve end where it runs nothing else."""
    until = time.monotonic() + options.deadline_ms / 1000 + END_S
    with contextlib.suppress(RayError, RayServeException, TimeoutError):
        serve.delete(name, _blocking=False)
        while name in serve.status().applications and time.monotonic() < until:
            time.sleep(POLL_S)
        if not serve.status().applications:
            time.sleep(PASS_ON_S)
            serve.shutdown()
