"""The OpenAPI document: what it names is there, and what reads it cannot break the server."""

import pathlib
import re
import subprocess
import sys

import pytest

from helpers.serve_process import Server
from urnet_jax.serve.web import openapi, protocol

ST = pathlib.Path(sys.prefix) / "clients" / "bin" / "st"
"""Schemathesis, where `make test-all` installs it, apart from all else."""

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "missing_required_header", "allow_header_conformance",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(measured):
    server = Server(measured)
    yield server
    server.stop()


def test_every_address_that_it_names_answers_as_it_says(server):
    status, document, _ = server.ask("/openapi.json")
    assert status == 200 and document["openapi"] == "3.1.0"
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            content = None
            if "requestBody" in told:
                content = told["requestBody"]["content"]["application/json"]["example"]
            status, _, headers = server.ask(path, content, method.upper())
            kinds = told["responses"][str(status)]["content"]
            assert status == 200 and headers["content-type"].split(";")[0] in kinds, path


def test_a_server_with_a_token_asks_for_it_where_the_document_says_so(measured):
    server = Server(measured, URNET_TOKEN="secret")
    document = server.ask("/openapi.json", headers={"Authorization": "Bearer secret"})[1]
    assert server.ask("/openapi.json")[0] == 401
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            status = server.ask(path, None if method == "get" else b"{}", method.upper())[0]
            assert (status == 401) == ("401" in told["responses"]), path
    server.stop()


def test_a_token_is_asked_for_but_for_health():
    document = openapi.document("m", (8, 8, 1), token=True)
    assert document["security"] == [{"token": []}]
    for path, methods in document["paths"].items():
        for told in methods.values():
            is_health = path.startswith("/v2/health/")
            assert ("401" in told["responses"]) != is_health
            assert ("security" in told) == is_health
    assert "security" not in openapi.document("m", (8, 8, 1), token=False)


def test_its_schema_is_what_is_decoded():
    schemas = openapi.document("m", (8, 8, 1), token=False)["components"]["schemas"]
    fields = protocol.Parameters.__struct_fields__
    assert schemas["Parameters"]["properties"].keys() == set(fields)
    assert schemas["Input"]["properties"]["name"]["enum"] == ["images"]


@pytest.mark.slow
@pytest.mark.skipif(not ST.exists(), reason="make test-all installs Schemathesis")
def test_requests_that_are_made_from_it_break_nothing(server, tmp_path):
    command = [
        str(ST), "run", f"http://127.0.0.1:{server.port}/openapi.json", "--no-color",
        f"--checks={','.join(CHECKS)}", "--phases=examples,coverage,fuzzing",
        "--max-examples=100", "--seed=0",
        # It would load the network again and again.
        "--exclude-path-regex=/models/[^/]+/load$",
    ]  # fmt: skip
    before = answered(server)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    made = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert made and made[1] == made[2] and int(made[1]) > 200, done.stdout
    assert server.ask("/v2/health/ready")[0] == 200
    assert answered(server) > before  # The document's own example, at least.


def answered(server: Server) -> int:
    stats = server.ask("/v2/models/digits/stats")[1]["model_stats"][0]
    return stats["inference_stats"]["success"]["count"]
