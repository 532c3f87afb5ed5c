"""The routes of the server, as an ASGI application."""

import asyncio
import hmac
import re
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import numpy as np

from urnet_jax.errors import UserError
from urnet_jax.serve import pixels
from urnet_jax.serve.engine import Answer, Engine
from urnet_jax.serve.schedule.request import Shed
from urnet_jax.serve.web import openapi, page, protocol
from urnet_jax.serve.web.http import (
    Held,
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
from urnet_jax.serve.web.parameters import bounds, limit_ms_of
from urnet_jax.version import __version__

LONG = 1 << 16
"""Bytes of a body from which on another thread reads it."""

PAGE_HEADERS = (
    (b"content-security-policy", b"default-src 'self' 'unsafe-inline'; img-src 'self' blob: data:"),
    (b"x-content-type-options", b"nosniff"),
)
"""The page needs itself alone, and no other may be put into it."""


def _json(what: Any) -> Reply:
    return Reply(200, msgspec.json.encode(what))


class App:
    """Answers HTTP requests by an engine's answers.

    Attributes:
      ready: whether it takes requests.
      came: how many there were, of any kind.
      answered: how many of them have their answer.
    """

    def __init__(self, engine: Engine, metrics: Metrics, settings: Settings) -> None:
        self.engine, self.metrics, self.settings = engine, metrics, settings
        self.ready = True
        self.came = self.answered = 0
        self._swapping = asyncio.Lock()
        self._held = Held(settings.held_limit, settings.body_limit)
        self._routes = [
            ("GET", re.compile(path), handler)
            for path, handler in (
                (r"/v2", self._server), (r"/v2/health/live", self._live),
                (r"/v2/health/ready", self._is_ready), (r"/metrics", self._metrics),
                (r"/", self._page), (r"/load", self._recent), (r"/openapi\.json", self._openapi),
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
            self.came += 1
            reply = await self._reply(scope, receive)
            length = str(len(reply.body)).encode()
            headers = [(b"content-type", reply.kind), (b"content-length", length), *reply.headers]
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "http.response.body", "body": reply.body})
            self.answered += 1

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
            self._authorised(scope)
            handler, names = self._found(scope)
            return await handler(scope, receive, **names)
        except Refused as refused:
            status, sentence, headers = refused.status, str(refused), refused.headers
        except UserError as error:
            status, sentence, headers = 400, str(error), ()
        except Shed as shed:
            if shed.reason == "impossible":
                status, sentence, headers = 400, str(shed), ()
            else:
                status, (sentence, headers) = 503, retry(shed)
        except Exception as error:  # The device's, or a defect: whoever asked is told so.
            traceback.print_exc()
            status, sentence, headers = 500, f"The server failed: {str(error)[:300]}", ()
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
        alive = self.engine.alive
        return Reply(200 if alive else 503, msgspec.json.encode({"live": alive}))

    async def _is_ready(self, *_: Any) -> Reply:
        ready = self.ready and self.engine.alive
        return Reply(200 if ready else 503, msgspec.json.encode({"ready": ready}))

    async def _ready(self, *_: Any, **__: Any) -> Reply:
        return await self._is_ready()

    async def _page(self, *_: Any) -> Reply:
        content = page.page(self.engine.predictor, self.settings.name)
        return Reply(200, content, PAGE_HEADERS, b"text/html; charset=utf-8")

    async def _openapi(self, *_: Any) -> Reply:
        shape, token = self.engine.predictor.image_shape, bool(self.settings.token)
        return _json(openapi.document(self.settings.name, shape, token))

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
            raise Refused(
                400, "This is one replica of several, which take a new checkpoint together: send "
                "SIGHUP to urnet serve --ray, or deploy it anew.",
            )  # fmt: skip
        async with self._swapping:
            reload = self.settings.reload
            await asyncio.to_thread(lambda: self.engine.swap(reload()))
        return _json({"name": self.settings.name, "version": self._version})

    async def _infer(self, scope: Scope, receive: Receive, **_: Any) -> Reply:
        came = time.monotonic()
        if header(scope, b"content-encoding") not in (None, b"identity"):
            raise Refused(415, "The body is compressed, which is not understood; send it as it is.")
        with self._held.room_for(scope):
            body = await read_body(scope, receive, self.settings)
            request, images = await self._decoded(scope, body)
            low, high = bounds(request.parameters, self.engine.predictor, len(images))
            limit_ms = limit_ms_of(request.parameters) or self.settings.deadline_ms
            future = self.engine.submit(
                images, came + limit_ms / 1000, min_scale=low, max_scale=high,
                priority=request.parameters.priority, arrival=came,
            )  # fmt: skip
            del body
            answer = await self._unless_gone(asyncio.wrap_future(future), receive)
        reply = self._told(request, answer)
        self.engine.handed_over(came + answer.queue_s + answer.compute_s)
        return reply

    async def _decoded(self, scope: Scope, body: bytes) -> tuple[protocol.Request, np.ndarray]:
        """The request and its images; a long one is read by another thread, as others wait."""
        length = header(scope, b"inference-header-content-length")
        if length is not None and not length.isdigit():
            raise UserError("Inference-Header-Content-Length is no number of bytes.")
        json_bytes = None if length is None else int(length[:18])

        def decode() -> tuple[protocol.Request, np.ndarray]:
            request, sent = protocol.decode(body, json_bytes)
            images = pixels.check(sent, self.engine.predictor.image_shape)
            if not 1 <= len(images) <= self.engine.most_images:
                raise UserError(
                    f"The request holds {len(images)} images; expected 1 to "
                    f"{self.engine.most_images}."
                )
            return request, images

        return decode() if len(body) < LONG else await asyncio.to_thread(decode)

    async def _unless_gone(self, answer: "asyncio.Future[Answer]", receive: Receive) -> Answer:
        """The answer; where whoever asked has hung up, it is not computed if it still waits."""
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Refused(400, "The connection was closed before the answer was there.")
            return answer.result()
        finally:
            gone.cancel()
            answer.cancel()  # No effect on one that is there; some servers cancel this task itself.

    def _told(self, request: protocol.Request, answer: Answer) -> Reply:
        prediction = answer.prediction
        about = {"model_name": self.settings.name, "model_version": str(answer.step)}
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
