"""Beyond one machine: replicas of the server as an application of Ray Serve (the extra `ray`).

Each replica is a whole server of its own, engine and all: it batches, chooses S and refuses by
what waits at it. Ray spreads requests over replicas and starts one anew that dies.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath
from ray import serve  # pyright: ignore[reportMissingImports]

from urnet_jax.errors import UserError
from urnet_jax.runs import bundle, load, profile
from urnet_jax.serve.engine import Engine
from urnet_jax.serve.web.options import TOKEN, Options, application
from urnet_jax.serve.web.server import END_S
from urnet_jax.xla import cache

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
      arguments: `workdir`, `replicas`, and of `urnet serve`'s flags `step`, `name`, `deadline_ms`,
        `most_waiting`, `batch_sizes`, `body_limit` and `held_mb`; on a command line all are text.
        A token is taken from the environment alone.

    Raises:
      UserError: one of them is not known or not of its kind, or see `build`.
    """
    values = {"step": "newest", "replicas": 1, **arguments}
    if "workdir" not in values:
        raise UserError("workdir is not set; name the folder of a run, or a bundle.")
    if unknown := sorted(values.keys() - KINDS.keys()):
        raise UserError(f"{unknown[0]} is no argument of it; expected some of {', '.join(KINDS)}.")
    told = {name: _read(name, value) for name, value in values.items()}
    replicas = told.pop("replicas")
    path, which = told.pop("workdir"), told.pop("step")
    token = os.environ.get(TOKEN, "")
    return build(Options(path, which, token=token, **told), replicas)


def _step(value: Any) -> Any:
    if value in ("newest", "best"):
        return value
    return int(value)


def _count(value: Any) -> int:
    if int(value) < 1:
        raise ValueError
    return int(value)


def _positive(value: Any) -> float:
    if not 0 < float(value) < float("inf"):
        raise ValueError
    return float(value)


def _sizes(value: Any) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(sorted({_count(part) for part in parts}))


KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "workdir": (str, "a folder"),
    "replicas": (_count, "a number from 1 up"),
    "step": (_step, "newest, best or a number"),
    "name": (str, "a name"),
    "deadline_ms": (_positive, "a number above 0"),
    "most_waiting": (_count, "a number from 1 up"),
    "batch_sizes": (_sizes, "numbers from 1 up, as 1,8"),
    "body_limit": (_count, "a number from 1 up"),
    "held_mb": (_count, "a number from 1 up"),
}
"""The arguments of `app`: how each is read, and what it is expected to be."""


def _read(name: str, value: Any) -> Any:
    read, expected = KINDS[name]
    try:
        return read(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {value!r}; expected {expected}.") from None


def build(options: Options, replicas: int) -> serve.Application:
    """The application that Ray runs.

    All replicas, those too that are started later, have the checkpoint that is meant now.

    Args:
      options: of each replica.
      replicas: how many.

    Raises:
      UserError: there is no such network, or nobody has measured its times.
    """
    options, needs = settled(options)
    # The engine decides whom to refuse and says when to come back: Ray holds back none of those
    # that may wait there.
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


def settled(options: Options) -> tuple[Options, dict[str, Any]]:
    """Options that name a step and hold wherever they are read, and what each replica is given.

    That is as many devices as the network was measured on.

    Raises:
      UserError: see `build`.
    """
    path = epath.Path(options.path).resolve()
    options = dataclasses.replace(options, path=str(path))
    if bundle.is_bundle(path):
        found = profile.from_file(path / profile.FILE)
    else:
        step = load.find_meta(path, options.which).step
        options = dataclasses.replace(options, which=step)
        found = profile.read(path, step)
    if found is None:
        raise UserError(
            "A server is asked for, and nobody has measured how long this network takes: run "
            "urnet calibrate on the device that is to serve it."
        )
    count, _, kind = str(found.about.get("device")).partition(" x ")
    if kind.startswith("cpu") or not count.isdigit():
        return options, CPU
    if "TPU" in kind:
        return options, {"num_cpus": 0, "resources": {"TPU": int(count)}}
    return options, {"num_cpus": 0, "num_gpus": int(count)}
