"""The routes of the server, as an ASGI application."""

import asyncio
import hmac
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import numpy as np

from urnet_jax.errors import UserError
from urnet_jax.serve import budgets, pixels
from urnet_jax.serve.engine import Answer, Engine
from urnet_jax.serve.predictor import Predictor
from urnet_jax.serve.schedule.request import Shed
from urnet_jax.serve.web import page, protocol
from urnet_jax.serve.web.http import (
    Receive,
    Refused,
    Reply,
    Scope,
    Send,
    Settings,
    header,
    read_body,
    retry,
)
from urnet_jax.serve.web.metrics import Metrics
from urnet_jax.version import __version__

PAGE_HEADERS = (
    (b"content-security-policy", b"default-src 'self' 'unsafe-inline'; img-src 'self' blob: data:"),
    (b"x-content-type-options", b"nosniff"),
)
"""The page needs itself alone, and no other may be put into it."""


def _json(what: Any) -> Reply:
    return Reply(200, msgspec.json.encode(what))


class App:
    """Answers HTTP requests by an engine's answers."""

    def __init__(self, engine: Engine, metrics: Metrics, settings: Settings) -> None:
        self.engine, self.metrics, self.settings = engine, metrics, settings
        self.ready = True
        self._swapping = asyncio.Lock()
        self._routes = [
            ("GET", re.compile(path), handler)
            for path, handler in (
                (r"/v2", self._server), (r"/v2/health/live", self._live),
                (r"/v2/health/ready", self._is_ready), (r"/metrics", self._metrics),
                (r"/", self._page), (r"/load", self._recent),
                (r"/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?", self._model),
                (r"/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?/ready", self._ready),
                (r"/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?/config",
                 self._config),
                (r"/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?/stats", self._stats),
            )
        ]  # fmt: skip
        self._routes += [
            ("POST", re.compile(path), handler)
            for path, handler in (
                (r"/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?/infer", self._infer),
                (r"/v2/repository/models/(?P<model>[^/]+)/load", self._load),
                (r"/v2/repository/index", self._index),
            )
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: HTTP requests, and the server's start and end."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            reply = await self._reply(scope, receive)
            length = str(len(reply.body)).encode()
            headers = [(b"content-type", reply.kind), (b"content-length", length), *reply.headers]
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "http.response.body", "body": reply.body})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """At its end, what was taken is answered."""
        while True:
            event = await receive()
            if event["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                self.ready = False
                await asyncio.to_thread(self.engine.stop)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _reply(self, scope: Scope, receive: Receive) -> Reply:
        """Finds the route and what it says; every error becomes one sentence."""
        try:
            handler, names = self._found(scope)
            self._authorised(scope)
            return await handler(scope, receive, **names)
        except Refused as refused:
            status, sentence, headers = refused.status, str(refused), refused.headers
        except UserError as error:
            status, sentence, headers = 400, str(error), ()
        except Shed as shed:
            status, (sentence, headers) = 503, retry(shed)
        if status in (400, 408, 413, 411, 415):
            self.metrics.observe("bad", None)
        return Reply(status, msgspec.json.encode({"error": sentence}), tuple(headers))

    def _found(self, scope: Scope) -> tuple[Callable[..., Awaitable[Reply]], dict[str, Any]]:
        path, method = scope["path"].rstrip("/") or "/", scope["method"]
        others = set()
        for known, pattern, handler in self._routes:
            if match := pattern.fullmatch(path):
                if known == method:
                    self._check_model(**match.groupdict())
                    return handler, match.groupdict()
                others.add(known)
        if others:
            allowed = ", ".join(sorted(others))
            raise Refused(405, f"{method[:20]} is not known here; use {allowed}.",
                          (b"allow", allowed.encode()))  # fmt: skip
        raise Refused(404, f"There is nothing at {path[:200]}.")

    def _check_model(self, model: str | None = None, version: str | None = None) -> None:
        if model is not None and model != self.settings.name:
            raise Refused(404, f"There is no model {model[:80]!r}; it is {self.settings.name!r}.")
        if version is not None and version != self._version:
            raise Refused(
                404, f"There is no version {version[:40]!r} of the model; it is {self._version!r}."
            )

    def _authorised(self, scope: Scope) -> None:
        """Health is told to everybody."""
        token = self.settings.token
        if not token or scope["path"].startswith("/v2/health/"):
            return
        given = header(scope, b"authorization") or b""
        if not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise Refused(
                401, "The request has no valid token; send it as Authorization: Bearer TOKEN.",
                (b"www-authenticate", b"Bearer"),
            )  # fmt: skip

    @property
    def _version(self) -> str:
        """The step of the checkpoint that answers."""
        return str(self.engine.predictor.bundle.meta.step)

    async def _server(self, *_: Any) -> Reply:
        extensions = ["binary_tensor_data", "model_configuration", "model_repository",
                      "statistics"]  # fmt: skip
        return _json({"name": "urnet_jax", "version": __version__, "extensions": extensions})

    async def _live(self, *_: Any) -> Reply:
        return _json({"live": True})

    async def _is_ready(self, *_: Any) -> Reply:
        return Reply(200 if self.ready else 503, msgspec.json.encode({"ready": self.ready}))

    async def _ready(self, *_: Any, **__: Any) -> Reply:
        return await self._is_ready()

    async def _page(self, *_: Any) -> Reply:
        content = page.page(self.engine.predictor, self.settings.name)
        return Reply(200, content, PAGE_HEADERS, b"text/html; charset=utf-8")

    async def _recent(self, *_: Any) -> Reply:
        return _json(self.metrics.recent.summary())

    async def _metrics(self, *_: Any) -> Reply:
        return Reply(200, self.metrics.text(self.engine), kind=b"text/plain; version=0.0.4")

    def _sizes(self) -> tuple[tuple[int, ...], int, int]:
        arch = self.engine.predictor.arch
        return self.engine.predictor.image_shape, arch.num_classes, arch.num_gates

    async def _model(self, *_: Any, **__: Any) -> Reply:
        return _json(protocol.metadata(self.settings.name, self._version, *self._sizes()))

    async def _config(self, *_: Any, **__: Any) -> Reply:
        most = self.engine.most_images
        return _json(protocol.config(self.settings.name, *self._sizes(), most))

    async def _stats(self, *_: Any, **__: Any) -> Reply:
        return _json(self.metrics.stats(self.settings.name, self._version))

    async def _index(self, *_: Any) -> Reply:
        state = "READY" if self.ready else "UNAVAILABLE"
        return _json([{"name": self.settings.name, "version": self._version, "state": state}])

    async def _load(self, scope: Scope, receive: Receive, **_: Any) -> Reply:
        """Has the newest checkpoint answer from the next batch on."""
        await read_body(scope, receive, self.settings)
        if self.settings.reload is None:
            raise Refused(400, "This server was not told where its network comes from.")
        async with self._swapping:
            reload = self.settings.reload
            await asyncio.to_thread(lambda: self.engine.swap(reload()))
        return _json({"name": self.settings.name, "version": self._version})

    async def _infer(self, scope: Scope, receive: Receive, **_: Any) -> Reply:
        came = time.monotonic()
        body = await read_body(scope, receive, self.settings)
        length = header(scope, b"inference-header-content-length")
        if length is not None and not length.isdigit():
            raise UserError("Inference-Header-Content-Length is no number of bytes.")
        request, sent = protocol.decode(body, None if length is None else int(length[:18]))
        images = pixels.check(sent, self.engine.predictor.image_shape)
        if not 1 <= len(images) <= self.engine.most_images:
            raise UserError(
                f"The request holds {len(images)} images; expected 1 to {self.engine.most_images}."
            )
        asked = request.parameters
        low, high = bounds(asked, self.engine.predictor, len(images))
        limit_ms = asked.deadline_ms or (asked.timeout or 0) / 1000 or self.settings.deadline_ms
        future = self.engine.submit(
            images, came + limit_ms / 1000, min_scale=low, max_scale=high, priority=asked.priority
        )
        answer = await asyncio.wrap_future(future)
        return self._told(request, answer)

    def _told(self, request: protocol.Request, answer: Answer) -> Reply:
        prediction = answer.prediction
        about = {"model_name": self.settings.name, "model_version": self._version}
        told = {
            "scale_used": round(float(np.mean(prediction.scale)), 4),
            "queue_ms": round(1e3 * answer.queue_s, 3),
            "compute_ms": round(1e3 * answer.compute_s, 3),
        }
        body, json_length = protocol.encode(request, prediction, about, told)
        if json_length is None:
            return Reply(200, body)
        headers = ((b"inference-header-content-length", str(json_length).encode()),)
        return Reply(200, body, headers, b"application/octet-stream")


def bounds(asked: protocol.Parameters, predictor: Predictor, images: int) -> tuple[float, float]:
    """The S between which a request may be answered.

    Raises:
      UserError: what it says of itself does not go together, or cannot be met.
    """
    ranged = asked.min_scale is not None or asked.max_scale is not None
    exact = [name for name in ("scale", "flops") if getattr(asked, name) is not None]
    if len(exact) > 1 or (exact and ranged):
        named = [*exact, *(["min_scale or max_scale"] if ranged else [])]
        raise UserError(f"{' and '.join(named)} are both set; set one, or none.")
    if exact:
        wanted = budgets.Asked(scale=asked.scale, flops=asked.flops)
        scale = float(budgets.scales(predictor, wanted, images)[0])
        return scale, scale
    low = 0.0 if asked.min_scale is None else asked.min_scale
    high = 1.0 if asked.max_scale is None else asked.max_scale
    if low > high:
        raise UserError(f"min_scale is {low:g}, more than max_scale, {high:g}; lower it.")
    return low, high
