"""A real server in a process of its own: what it says, what it refuses, and how it ends."""

import concurrent.futures
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from helpers.serve_process import Server, request
from urnet_jax.runs import export

ROOT = pathlib.Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(measured) -> Iterator[Server]:
    running = Server(measured)
    yield running
    code, printed, errors = running.stop()
    assert (code, errors) == (0, "") and re.fullmatch(STOPPED, printed)


STOPPED = r"Stopped: ([\d,]+) requests are answered, none is lost\.\n"
INFER = "/v2/models/digits/infer"


def test_what_it_says_of_itself(server, predictor):
    step = str(predictor.bundle.meta.step)
    assert server.ask("/v2")[1]["name"] == "urnet_jax"
    assert server.ask("/v2/health/live")[0] == server.ask("/v2/health/ready")[0] == 200
    assert server.ask("/v2/models/digits/ready")[0] == 200
    model = server.ask(f"/v2/models/digits/versions/{step}")[1]
    assert model["versions"] == [step] and model["inputs"][0]["shape"] == [-1, 8, 8, 1]
    assert server.ask("/v2/models/digits/config")[1]["max_batch_size"] == 16
    stats = server.ask("/v2/models/digits/stats")[1]["model_stats"][0]
    assert stats["name"] == "digits" and stats["version"] == step
    assert server.ask("/v2/repository/index", b"{}")[1][0]["state"] == "READY"


def test_an_answer_is_the_predictors(server, predictor, images):
    for scale, count in ((0.3, 1), (0.6, 5), (1.0, 16)):
        asked = request(images[:count], scale=scale) | {"id": "x", "outputs": [
            {"name": name} for name in ("classes", "probabilities", "gates", "flops", "scale_used")
        ]}  # fmt: skip
        status, found, _ = server.ask(INFER, asked)
        assert status == 200 and found["id"] == "x"
        outputs = {o["name"]: np.reshape(o["data"], o["shape"]) for o in found["outputs"]}
        expected = predictor(images[:count], scale=scale)
        np.testing.assert_array_equal(outputs["classes"], expected.classes)
        np.testing.assert_array_equal(outputs["gates"], expected.gates)
        np.testing.assert_array_equal(outputs["flops"], expected.flops)
        np.testing.assert_allclose(outputs["probabilities"], expected.probabilities, atol=1e-5)
        np.testing.assert_allclose(outputs["scale_used"], scale, rtol=1e-6)
        told = found["parameters"]
        assert told["scale_used"] == pytest.approx(scale) and told["compute_ms"] > 0
    before = server.ask("/metrics")[1].decode()
    assert 'urnet_requests_total{outcome="answered"}' in before
    assert "urnet_compilations 3.0" in before


def test_flops_and_bounds_of_a_request(server, predictor, images):
    share = predictor.bundle.calibration.shares_unseen[1]
    _, found, _ = server.ask(INFER, request(images[:2], flops=share))
    assert found["parameters"]["scale_used"] == pytest.approx(0.6, abs=1e-3)
    _, found, _ = server.ask(INFER, request(images[:2], max_scale=0.4))
    assert found["parameters"]["scale_used"] <= 0.4 + 1e-6
    for wrong, sentence in (
        ({"scale": 0.5, "flops": 0.5}, "scale and flops are both set"),
        ({"scale": 0.5, "min_scale": 0.5}, "scale and min_scale or max_scale are both set"),
        ({"min_scale": 0.6, "max_scale": 0.5}, "min_scale is 0.6, more than max_scale, 0.5"),
        ({"flops": 0.001}, "flops is 0.001, and the least"),
    ):
        status, found, _ = server.ask(INFER, request(images[:2], **wrong))
        assert status == 400 and sentence in found["error"]


def test_what_cannot_be_in_time_is_told_when_to_come_back(server, images):
    status, found, _ = server.ask(INFER, request(images[:16], deadline_ms=0.001))
    assert status == 400
    assert re.search(r"due within 0.001 ms, and takes [\d.]+ ms at least", found["error"])
    # One that is on its way for longer than it may take could be in time at another try.
    content = json.dumps(request(images[:2], deadline_ms=1000)).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    head += "Connection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode() + content[:9])
        time.sleep(1.5)
        connection.sendall(content[9:])
        reply = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert reply.startswith("HTTP/1.1 503") and re.search(r"(?i)\r\nretry-after: \d+\r\n", reply)
    assert re.search(r"cannot be answered before its deadline; try again in \d+\.\d{3} s\.", reply)
    assert 'urnet_shed_total{reason="late"}' in server.ask("/metrics")[1].decode()


def test_addresses_and_methods(server):
    for path, status in (
        ("/v3", 404), ("/v2/models/other", 404), ("/v2/models/digits/versions/9999", 404),
        ("/v2/models/digits/" + "x" * 3000, 404), (INFER, 405), ("/v2/models//infer", 404),
    ):  # fmt: skip
        found = server.ask(path)
        assert found[0] == status and set(found[1]) == {"error"}, path
    assert server.ask("/v2", b"{}")[2]["allow"] == "GET"


def raw(server: Server, content: bytes, wait_s: float = 30.0) -> bytes:
    """What comes back for bytes that may be no HTTP at all."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait_s) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_bad_requests_of_every_kind_get_a_sentence_and_the_server_lives(server, images):
    rng = np.random.default_rng(0)
    whole = json.dumps(request(images[:2])).encode()
    statuses = []
    for k in range(60):
        content = bytearray(whole)
        for _ in range(1 + k % 5):
            content[rng.integers(len(content))] = rng.integers(256)
        content = bytes(content[: rng.integers(1, len(content))] if k % 3 == 0 else content)
        headers = {} if k % 4 else {"Inference-Header-Content-Length": str(rng.integers(-9, 9999))}
        status, found, _ = server.ask(INFER, content, headers=headers)
        statuses.append(status)
        assert status == 200 or (status == 400 and len(found["error"]) < 500), found
    assert 400 in statuses
    huge = 1 << 31
    for data, shape in (
        ([10**400], [1]), ([0] * 64, [1] * 70), ([], [0, huge, huge, huge]), ([], [huge] * 9999),
        (["5"] * 64, [1, 8, 8, 1]), ([None] * 64, [64]),
    ):  # fmt: skip
        tensor = {"name": "images", "shape": shape, "datatype": "FP32", "data": data}
        status, found, _ = server.ask(INFER, {"inputs": [tensor]})
        assert status == 400 and len(found["error"]) < 500, shape[:9]
    twice = request(images[:1]) | {"outputs": [{"name": "gates"}] * 2}
    assert "asked for twice" in server.ask(INFER, twice)[1]["error"]
    zipped = server.ask(INFER, request(images[:1]), headers={"Content-Encoding": "gzip"})
    assert zipped[0] == 415
    for shape in ([1, 8, 8, 3], [8, 8, 1], [0, 8, 8, 1], [17, 8, 8, 1], [1, 64], [], [4] * 40):
        blank = np.zeros([min(size, 17) for size in shape][:6] if len(shape) < 9 else [1])
        tensor = {"name": "images", "shape": shape, "datatype": "UINT8",
                  "data": blank.ravel().astype(int).tolist()}  # fmt: skip
        status, found, _ = server.ask(INFER, {"inputs": [tensor]})
        assert status == 400 and found["error"], shape
    nan = b'{"inputs":[{"name":"images","shape":[1,8,8,1],"datatype":"FP32","parameters":' \
          b'{"binary_data_size":256}}]}'  # fmt: skip
    status, found, _ = server.ask(
        INFER, nan + np.full(64, np.nan, np.float32).tobytes(),
        headers={"Inference-Header-Content-Length": str(len(nan))},
    )  # fmt: skip
    assert status == 400 and "not finite" in found["error"]
    for content in (
        b"\x00\x01\x02\x03\r\n\r\n", b"GET\r\n\r\n", b"POST /v2 HTTP/9.9\r\n\r\n",
        b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"A" * 200_000 + b": b\r\n\r\n",
        # The body ends before its length is there: nobody is left to be answered.
        b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
    ):  # fmt: skip
        assert not re.match(rb"HTTP/1.1 5", raw(server, content)), content[:60]
    too_large = {"Content-Length": str(1 << 40)}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", INFER)
    connection.putheader(*next(iter(too_large.items())))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    assert server.ask(INFER, request(images[:1]))[0] == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_line_of_the_docs_works(server, tmp_path):
    page = (ROOT / "docs/serving.md").read_text()
    (block,) = [text for text in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "curl" in text]
    line = block.replace("python -c", f"{sys.executable} -c").replace("8000", str(server.port))
    line = line.replace('"deadline_ms": 50', '"deadline_ms": 60000').replace("curl", "curl -sS")
    done = subprocess.run(["bash", "-ec", line], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["parameters"]["scale_used"] <= 0.5 and len(found["outputs"][0]["data"]) == 1


def test_a_new_checkpoint_takes_over_and_no_request_is_lost(server, images):
    stop, statuses = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            statuses.append(server.ask(INFER, request(images[:3]))[0])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    status, found, _ = server.ask("/v2/repository/models/digits/load", b"{}")
    stop.set()
    for thread in threads:
        thread.join()
    assert status == 200 and found["name"] == "digits"
    assert len(statuses) >= 4 and set(statuses) == {200}


def test_a_stop_answers_what_was_taken(measured, images):
    server = Server(measured)
    asked = request(images[:16])
    answered, refused, began = [], [], threading.Event()

    def ask(_: int) -> None:
        try:
            while True:
                status = server.ask(INFER, asked)[0]
                answered.append(status)
                if len(answered) > 20:
                    began.set()
        except (OSError, http.client.HTTPException) as error:
            refused.append(error)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        done = [pool.submit(ask, k) for k in range(8)]
        assert began.wait(120)
        code, printed, errors = server.stop()
        concurrent.futures.wait(done)
    found = re.fullmatch(STOPPED, printed)
    assert (code, errors) == (0, "") and found
    assert int(found[1].replace(",", "")) == len(answered)
    # What was taken is answered; whoever came too late finds nobody there.
    assert set(answered) <= {200, 503}
    assert all(isinstance(error, ConnectionError) for error in refused)


def test_a_bundle_is_served_to_those_with_a_token(measured, tmp_path, images):
    export.export_bundle(measured, tmp_path / "bundle", "newest")
    (tmp_path / "token").write_text("secret\n")
    server = Server(tmp_path / "bundle", f"--token_file={tmp_path / 'token'}")
    assert server.ask("/v2/health/ready")[0] == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
        status, found, told = server.ask(INFER, request(images[:1]), headers=headers)
        assert status == 401 and told["www-authenticate"] == "Bearer" and "token" in found["error"]
    right = {"Authorization": "Bearer secret"}
    assert server.ask(INFER, request(images[:1]), headers=right)[0] == 200
    assert server.stop()[0] == 0


def test_a_sender_that_stops_is_not_waited_for(measured, tmp_path):
    server = Server(measured)
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(
            b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
        )
        reply = connection.recv(65536)
    assert reply.startswith(b"HTTP/1.1 408") and time.monotonic() - start > 5
    # Nor is one that sends nothing, or half a header.
    for content in (b"", b"GET /v2 HTTP/1.1\r\nHos"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(content)
            assert connection.recv(65536) == b""
    assert server.stop()[0] == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--port=99999"], "--port is '99999'"),
        (["--deadline_ms=0"], "--deadline_ms is '0'"),
        (["--batch_sizes=none"], "--batch_sizes is 'none'; expected numbers from 1 up"),
        (["--batch_sizes=1,x"], "--batch_sizes is '1,x'"),
        (["--token_file=gone"], "--token_file gone cannot be read"),
        (["--name=a/b"], "--name is 'a/b'; expected letters, digits"),
        (["--host=256.1.1.1"], "cannot be listened at"),
        ([], "nobody has measured how long this network takes: run urnet calibrate"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(finished, flags, sentence, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "urnet_jax", "serve", f"--workdir={workdir}", "--port=0", *flags],
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
