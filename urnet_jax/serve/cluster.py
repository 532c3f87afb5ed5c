"""Beyond one machine: replicas of the server behind Ray Serve (the extra `ray`).

Each replica is a whole server of its own, engine and all: it batches, chooses S and refuses by
what waits at it. Ray spreads requests over replicas and starts one anew that dies.
"""

import dataclasses
import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from etils import epath
from ray import serve  # pyright: ignore[reportMissingImports]
from ray.exceptions import RayTaskError  # pyright: ignore[reportMissingImports]
from ray.serve.exceptions import RayServeException  # pyright: ignore[reportMissingImports]

from urnet_jax.errors import UserError
from urnet_jax.runs import bundle, load, profile
from urnet_jax.serve import budgets
from urnet_jax.serve.engine import Engine
from urnet_jax.serve.web.options import Options, application
from urnet_jax.serve.web.server import END_S, announce, bind
from urnet_jax.xla import cache

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

CPU: dict[str, Any] = {"num_cpus": 0}
"""A CPU's times are of all its cores, so that there Ray counts none."""

HEALTH_S = 1.0
"""How often Ray asks a replica whether it lives."""


@serve.ingress()
class Replica:
    """A server of one network, as Ray runs it."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._engine: Engine | None = None

    def __serve_build_asgi_app__(self) -> Any:
        """Loads and compiles; Ray calls it once, before it sends requests."""
        cache.keep_compiled()
        app = application(self._options, self._options.load(), reloads=False)
        self._engine = app.engine
        return app

    def check_health(self) -> None:
        """Raises where the engine has failed: Ray then starts another replica."""
        if self._engine is not None and not self._engine.alive:
            raise RuntimeError("The engine has failed.")


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """Builds the application for `serve run` and its configuration files.

    Args:
      arguments: `workdir`, `replicas` and the flags of `urnet serve` by their names.

    Raises:
      UserError: one of them is not known, or not of its kind.
    """
    values = dict(arguments)
    replicas = _number(values, "replicas", 1, int)
    if "workdir" not in values:
        raise UserError("workdir is not set; name the folder of a run, or a bundle.")
    told: dict[str, Any] = {"path": str(values.pop("workdir"))}
    step = str(values.pop("step", "newest"))
    told["which"] = int(step) if step.isdigit() else step
    if told["which"] not in ("newest", "best") and not isinstance(told["which"], int):
        raise UserError(f"step is {step!r}; expected newest, best or a number.")
    if sizes := values.pop("batch_sizes", None):
        text = sizes if isinstance(sizes, str) else ",".join(map(str, sizes))
        try:
            told["batch_sizes"] = tuple(int(size) for size in text.split(","))
        except ValueError:
            raise UserError(f"batch_sizes is {text!r}; expected numbers as 1,4,16.") from None
    for field in dataclasses.fields(Options):
        if field.name in values:
            told[field.name] = _number(values, field.name, None, type(field.default))
    if values:
        raise UserError(f"{sorted(values)[0]} is no argument of this application.")
    return build(Options(**told), replicas)


def _number(values: dict[str, Any], name: str, default: Any, kind: Any) -> Any:
    """Takes an argument out; on a command line all are text."""
    value = values.pop(name, default)
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {value!r}; expected a number.") from None


def build(options: Options, replicas: int) -> serve.Application:
    """The application that Ray runs.

    Args:
      options: of each replica.
      replicas: how many.

    Raises:
      UserError: there is no such network, or nobody has measured its times.
    """
    needs = _needs(options)
    # The engine decides whom to refuse and says when to come back: Ray never stands before it.
    most = options.most_waiting + max(options.batch_sizes)
    return serve.deployment(
        Replica, name=options.model, num_replicas=replicas, ray_actor_options=needs,
        max_ongoing_requests=most, max_queued_requests=most,
        graceful_shutdown_timeout_s=options.deadline_ms / 1000 + END_S,
        graceful_shutdown_wait_loop_s=0.1, health_check_period_s=HEALTH_S,
        max_constructor_retry_count=2,
        # In an update others answer until the new one does, where that takes no other device.
        max_surge_percent=100 if needs == CPU else 0,
    ).bind(options)  # fmt: skip


def _needs(options: Options) -> dict[str, Any]:
    """What each replica is given: as many devices as the network was measured on."""
    if bundle.is_bundle(options.path):
        found = profile.from_file(epath.Path(options.path) / profile.FILE)
    else:
        found = profile.read(options.path, load.find_meta(options.path, options.which).step)
    if found is None:
        raise UserError(
            "A server is asked for, and nobody has measured how long this network takes: run "
            "urnet calibrate on the device that is to serve it."
        )
    count, _, kind = str(found.about.get("device")).partition(" x ")
    if kind.startswith("cpu") or not count.isdigit():
        return CPU
    if "TPU" in kind:
        return {"num_cpus": 0, "resources": {"TPU": int(count)}}
    return {"num_cpus": 0, "num_gpus": int(count)}


def _check(options: Options) -> None:
    """Run where replicas will run: a UserError where they could not."""
    budgets.profile_here(options.load().bundle, "a server")


def run(options: Options, *, host: str, port: int, replicas: int) -> None:
    """Serves by several replicas until SIGTERM or Ctrl-C; SIGHUP takes the newest checkpoint.

    Joins the Ray that runs on this machine, or that RAY_ADDRESS names, or else starts one.

    Raises:
      UserError: there is no such network, it cannot be served there, or the port is taken.
    """
    options = dataclasses.replace(options, path=str(epath.Path(options.path).resolve()))
    name = options.model
    with bind(host, port) as taken:  # Ray takes a port by its number alone.
        host, port = taken.getsockname()[:2]
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    application = build(options, replicas)
    for logger in ("ray", "ray.serve"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        _check_there(options)
        print(f"Starting {replicas} replicas of {name} ...", flush=True)
        serve.start(http_options={"host": host, "port": port})
        _deploy(application, name)
        _check_reachable(host, port)
        announce(host, port, name, options.deadline_ms)
        _until_told(options, replicas)
        serve.delete(name)
    finally:
        ray.shutdown()
    print("Stopped: all that was taken is answered.", flush=True)


def _check_there(options: Options) -> None:
    """Fails where and as a replica would, before Ray tries and tries again."""
    try:
        # max_calls: its process ends with it, and gives back the device.
        ray.get(ray.remote(max_calls=1)(_check).options(**_needs(options)).remote(options))
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from None


def _deploy(application: serve.Application, name: str) -> None:
    try:
        serve.run(application, name=name)
    except (RuntimeError, RayServeException) as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(f"Ray Serve cannot run {name}: {told}") from error


def _check_reachable(host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"Nothing answers at {host}:{port} ({error}): this Ray has a Serve at another address "
            "already; give --host and --port as it has them."
        ) from error


def _until_told(options: Options, replicas: int) -> None:
    """Waits for a signal that ends it, and meanwhile heeds those that do not."""
    told, ended = threading.Event(), threading.Event()

    def heed(number: int, _: Any) -> None:
        if number != getattr(signal, "SIGHUP", None):
            ended.set()
        told.set()

    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), heed)
    while not ended.is_set():
        told.wait()
        told.clear()
        if not ended.is_set():
            _deploy(build(options, replicas), options.model)
            print("Every replica has taken the newest checkpoint.", flush=True)
