"""What the server knows of HTTP: replies, refusals, and bodies within their limits."""

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, NamedTuple

from urnet_jax.serve.predictor import Predictor
from urnet_jax.serve.schedule.request import Shed

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a server answers.

    Attributes:
      name: of the model, in addresses.
      deadline_ms: of a request that names none.
      body_limit: bytes of a request's body.
      held_limit: bytes of all bodies that are read or wait.
      body_seconds: in which a body has to arrive.
      token: that requests have to carry as `Authorization: Bearer TOKEN`; empty: none.
      reload: gives the network anew, for a swap; None where there is none to be had.
    """

    name: str
    deadline_ms: float = 100.0
    body_limit: int = 1 << 24
    held_limit: int = 1 << 28
    body_seconds: float = 10.0
    token: str = ""
    reload: Callable[[], Predictor] | None = None


class Reply(NamedTuple):
    """What is sent back."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    kind: bytes = b"application/json"


class Refused(Exception):
    """A request that gets an error: its status, and one sentence."""

    def __init__(self, status: int, sentence: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


class Held:
    """How many bytes of bodies there are; refuses more than it has room for."""

    def __init__(self, limit: int, most: int) -> None:
        """Holds nothing.

        Args:
          limit: bytes of all bodies.
          most: what a body that does not say its length may have.
        """
        self._limit, self._most, self._bytes = max(limit, most), most, 0

    @contextlib.contextmanager
    def room_for(self, scope: Scope) -> Iterator[None]:
        """Keeps room for a request's body; `Shed` where there is none."""
        length = header(scope, b"content-length")
        size = min(self._most, int(length[:18])) if length and length.isdigit() else self._most
        if self._bytes + size > self._limit:
            raise Shed("full", "The requests that wait already fill the memory for them.", 1.0)
        self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size


def retry(shed: Shed) -> tuple[str, list[tuple[bytes, bytes]]]:
    """What a request that is shed is told: the same time in a header, in whole seconds."""
    seconds = max(shed.retry_after_s, 0.001)
    sentence = f"{str(shed).rstrip('.')}; try again in {seconds:.3f} s."
    return sentence, [(b"retry-after", str(math.ceil(seconds)).encode())]


def header(scope: Scope, name: bytes) -> bytes | None:
    """A header's value, None if there is none of that name, which is in lower case."""
    return next((value for key, value in scope["headers"] if key == name), None)


async def read_body(scope: Scope, receive: Receive, settings: Settings) -> bytes:
    """The body of a request, within its limits of size and time."""
    limit = settings.body_limit
    too_large = Refused(413, f"The body is larger than {limit} bytes, the most that is taken.",
                        (b"connection", b"close"))  # fmt: skip
    length = header(scope, b"content-length")
    if length is not None and length.isdigit() and int(length[:18]) > limit:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            while True:
                event = await receive()
                if event["type"] == "http.disconnect":
                    raise Refused(400, "The connection was closed before the body was there.")
                parts.append(event.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise too_large
                if not event.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise Refused(
            408, f"The body did not arrive within {settings.body_seconds:g} s.",
            (b"connection", b"close"),
        ) from None  # fmt: skip
