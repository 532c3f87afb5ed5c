"""The server's OpenAPI document: what may be asked of it, for clients and tools that read such.

Source: https://spec.openapis.org/oas/v3.1.0.
"""

from typing import Any

import msgspec
import numpy as np

from urnet_jax.serve.web import protocol
from urnet_jax.version import __version__

REFUSALS = {
    "400": "The request is not one that can be answered.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "500": "The network could not be run.",
    "503": "Answers would be late, or too many wait; Retry-After says when to come back.",
}
"""Of a request with images."""

FOUND: dict[str, Any] = {"type": "object"}
"""The schema of what is told as JSON."""

_REF = "#/components/schemas/{name}"


def document(name: str, shape: tuple[int, ...], token: bool) -> dict[str, Any]:
    """The document of a server.

    Args:
      name: of its model.
      shape: of an image.
      token: whether requests have to carry one.
    """
    model, load = f"/v2/models/{name}", _told("Has the newest checkpoint answer.")
    for status, reason in (("400", "It cannot be served."), *list(REFUSALS.items())[1:3]):
        load["responses"][status] = _error(reason)
    paths: dict[str, Any] = {
        "/v2": _get("What the server is."),
        "/v2/health/live": _get("Whether it lives.", {"503": "It has failed."}),
        "/v2/health/ready": _get("Whether it takes requests.", {"503": "Not yet, or no more."}),
        model: _get("Inputs and outputs of the model."),
        f"{model}/ready": _get("Whether the model takes requests.", {"503": "Not now."}),
        f"{model}/config": _get("The model's configuration, as Triton tells it."),
        f"{model}/stats": _get("What was answered, as Triton tells it."),
        f"{model}/infer": {"post": _infer(shape)},
        "/v2/repository/index": {"post": _told("Which models there are.")},
        f"/v2/repository/models/{name}/load": {"post": load},
        "/load": _get("What the last seconds were like."),
        "/metrics": {"get": _told("Counters, for Prometheus.", kind="text/plain")},
        "/": {"get": _told("A page to try it on.", kind="text/html")},
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"{name}, by urnet_jax", "version": __version__},
        "paths": paths,
        "components": {"schemas": _schemas()},
    }
    if token:
        scheme = {"type": "http", "scheme": "bearer"}
        found["components"]["securitySchemes"] = {"token": scheme}
        found["security"] = [{"token": []}]
        for path, methods in paths.items():
            for method in methods.values():
                if path.startswith("/v2/health/"):
                    method["security"] = []
                else:
                    method["responses"]["401"] = _error("There is no valid token.")
    return found


def _get(what: str, others: dict[str, str] | None = None) -> dict[str, Any]:
    return {"get": _told(what, others)}


def _told(
    what: str, others: dict[str, str] | None = None, kind: str = "application/json"
) -> dict[str, Any]:
    """A method that takes nothing, and what it answers; `others` answer with JSON too."""
    schema = {"type": ["object", "array"] if kind == "application/json" else "string"}
    responses = {"200": {"description": "As asked.", "content": {kind: {"schema": schema}}}}
    for status, reason in (others or {}).items():
        responses[status] = {"description": reason, "content": {kind: {"schema": FOUND}}}
    return {"summary": what, "responses": responses}


def _error(reason: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(name="Error")}
    return {"description": reason, "content": {"application/json": {"schema": schema}}}


def _infer(shape: tuple[int, ...]) -> dict[str, Any]:
    example = {"inputs": [{
        "name": protocol.INPUT, "shape": [1, *shape], "datatype": "UINT8",
        "data": np.zeros(int(np.prod(shape)), int).tolist(),
    }], "parameters": {"max_scale": 0.5}}  # fmt: skip
    body = {"schema": {"$ref": _REF.format(name="Request")}, "example": example}
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    answer = {"application/json": {"schema": {"$ref": _REF.format(name="Response")}}} | binary
    return {
        "summary": "Classes, probabilities and the S used, of images.",
        "parameters": [{
            "name": "Inference-Header-Content-Length", "in": "header", "required": False,
            "description": "Bytes of JSON, where binary tensors follow it in the body.",
            "schema": {"type": "integer", "minimum": 1},
        }],
        "requestBody": {"required": True, "content": {"application/json": body} | binary},
        "responses": {
            "200": {"description": "The answer.", "content": answer},
            **{status: _error(reason) for status, reason in REFUSALS.items()},
        },
    }  # fmt: skip


def _schemas() -> dict[str, Any]:
    """Of requests, as they are decoded, and of what is answered."""
    _, found = msgspec.json.schema_components([protocol.Request], ref_template=_REF)
    schemas: dict[str, Any] = dict(found)
    given = schemas["Input"]["properties"]
    given["name"]["enum"], given["datatype"]["enum"] = [protocol.INPUT], [*protocol.DATATYPES]
    given["data"] = {
        "type": "array", "items": {}, "description": "Numbers, in one list or nested as the shape.",
    }  # fmt: skip
    schemas["Output"]["properties"]["name"]["enum"] = [*protocol.OUTPUTS]
    schemas["Error"] = {
        "type": "object", "required": ["error"], "properties": {"error": {"type": "string"}},
    }  # fmt: skip
    schemas["Response"] = {
        "type": "object",
        "required": ["model_name", "model_version", "outputs", "parameters"],
        "properties": {
            "model_name": {"type": "string"}, "model_version": {"type": "string"},
            "id": {"type": "string"}, "outputs": {"type": "array", "items": FOUND},
            "parameters": FOUND,
        },
    }  # fmt: skip
    return schemas
