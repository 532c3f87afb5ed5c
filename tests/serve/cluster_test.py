"""Replicas on a real local Ray: what they answer, and what is lost where one is killed."""

import concurrent.futures
import http.client
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from helpers.serve_process import CutShort, Server, request
from urnet_jax.errors import UserError

pytest.importorskip("ray")
# Ray's own, as it is imported.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:")]

INFER = "/v2/models/digits/infer"
SENDERS = 6
PATIENCE_S = 240
LOCAL = {"RAY_ADDRESS": "local"}  # a Ray of its own, whatever else runs on this machine
OPEN = {"RAY_AUTH_MODE": "disabled"}  # one that is joined without this user's token


@pytest.fixture(scope="module")
def workdir(measured, tmp_path_factory) -> pathlib.Path:
    return shutil.copytree(measured, tmp_path_factory.mktemp("cluster") / "run")


@pytest.fixture(scope="module")
def server(workdir) -> Iterator[Server]:
    running = Server(workdir, "--ray", "--replicas=2", **LOCAL)
    yield running
    running.process.kill()
    running.process.communicate()


def wait_until(done: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


class Senders:
    """Threads that ask one thing after another, and what became of it."""

    def __init__(self, server: Server, images: np.ndarray) -> None:
        self._server, self._asked = server, request(images[:3])
        self._stopping = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.errors: list[Exception] = []
        self._pool = concurrent.futures.ThreadPoolExecutor(SENDERS)
        self._running = [self._pool.submit(self._send) for _ in range(SENDERS)]

    def _send(self) -> None:
        while not self._stopping.is_set():
            try:
                self.statuses[self._server.ask(INFER, self._asked)[0]] += 1
            except (CutShort, OSError, http.client.HTTPException) as error:
                self.errors.append(error)
                return

    def wait_for(self, more: int) -> None:
        """Until so many more are answered."""
        wanted = self.statuses[200] + more
        wait_until(lambda: self.errors or self.statuses[200] >= wanted)
        assert not self.errors

    def stop(self) -> None:
        self._stopping.set()
        concurrent.futures.wait(self._running)
        self._pool.shutdown()


def replicas(server: Server) -> list[int]:
    """The processes of the replicas, all of them descendants of the command."""
    parents, names = {}, {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # It has ended.
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])

    def belongs(pid: int) -> bool:
        return pid == server.process.pid or (pid in parents and belongs(parents[pid]))

    return [pid for pid, name in names.items() if "ServeReplica:digits" in name and belongs(pid)]


def test_replicas_answer_as_the_predictor_does(server, predictor, images):
    for scale, count in ((0.3, 1), (1.0, 16)):
        for _ in range(4):
            status, found, _ = server.ask(INFER, request(images[:count], scale=scale))
            assert status == 200
            outputs = {o["name"]: np.reshape(o["data"], o["shape"]) for o in found["outputs"]}
            expected = predictor(images[:count], scale=scale)
            np.testing.assert_array_equal(outputs["classes"], expected.classes)
            assert found["parameters"]["scale_used"] == pytest.approx(scale)
    status, found, _ = server.ask(INFER, request(images[:2], scale=2))
    assert status == 400 and "$.parameters.scale" in found["error"]
    status, found, _ = server.ask("/v2/repository/models/digits/load", b"{}")
    assert status == 400 and "SIGHUP" in found["error"]
    assert server.ask("/")[0] == server.ask("/v2/health/ready")[0] == 200


def test_both_replicas_work(server, images):
    assert len(replicas(server)) == 2
    senders = Senders(server, images)
    senders.wait_for(200)
    senders.stop()
    assert set(senders.statuses) == {200} and not senders.errors
    # Each call asks either of the two, by chance.
    counts = [answered(server) for _ in range(60)]
    assert min(counts) > 0


def answered(server: Server) -> float:
    """By the replica that happens to say so."""
    metrics = server.ask("/metrics")[1].decode()
    match = re.search(r'^urnet_requests_total{outcome="answered"} (\S+)$', metrics, re.MULTILINE)
    assert match is not None
    return float(match[1])


def test_a_replica_that_is_killed_loses_what_it_held_and_no_more(server, images):
    senders = Senders(server, images)
    senders.wait_for(50)
    before = replicas(server)
    os.kill(before[0], signal.SIGKILL)
    senders.wait_for(200)
    wait_until(lambda: len(set(replicas(server)) - {before[0]}) == 2)
    senders.wait_for(50)
    senders.stop()
    lost = sum(n for status, n in senders.statuses.items() if status != 200)
    # Whoever asked is told; each sender had one request at most on its way to the replica.
    assert not senders.errors and lost <= SENDERS
    assert set(senders.statuses) <= {200, 500, 503}


def test_a_new_checkpoint_takes_over_replica_by_replica(server, images):
    senders, before = Senders(server, images), set(replicas(server))
    senders.wait_for(20)
    server.process.send_signal(signal.SIGHUP)
    assert server.process.stdout is not None
    # Ray may have said something of its own before.
    assert any(line.startswith("Every replica has taken step") for line in server.process.stdout)
    senders.wait_for(50)
    senders.stop()
    assert set(senders.statuses) == {200} and not senders.errors
    assert not before & set(replicas(server))


def test_an_update_to_what_cannot_be_served_leaves_the_old_one(server, workdir, images):
    held = {path: path.read_bytes() for path in workdir.glob("checkpoints/*/profile.json")}
    for path in held:
        path.unlink()
    server.process.send_signal(signal.SIGHUP)
    assert server.process.stdout is not None
    assert any(line.startswith("It is not updated: ") for line in server.process.stdout)
    assert server.ask(INFER, request(images[:1]))[0] == 200
    for path, content in held.items():
        path.write_bytes(content)


def test_a_stop_answers_what_was_taken(server, images):
    senders = Senders(server, images)
    senders.wait_for(20)
    code, printed, _ = server.stop()
    senders.stop()
    assert code == 0 and printed.endswith("Stopped.\n")
    # Whoever comes while it ends is told so; later there is nobody.
    assert set(senders.statuses) <= {200, 404, 503}
    for error in senders.errors:
        # Of answers, only Ray's own, to those who came too late, may be cut by its end.
        refused = isinstance(error, CutShort) and error.status in {404, 503}
        assert refused or isinstance(error, ConnectionError), error


def test_arguments_of_a_configuration_file(measured):
    from urnet_jax.serve import cluster

    arguments = {"workdir": str(measured), "replicas": "2", "deadline_ms": "50",
                 "batch_sizes": "1,4", "step": "newest"}  # fmt: skip
    deployment = cluster.app(arguments)._bound_deployment
    (options,) = deployment.init_args
    assert deployment.name == options.model == "run" and deployment.num_replicas == 2
    assert (options.deadline_ms, options.batch_sizes, options.which) == (50, (1, 4), 29)
    assert deployment.max_ongoing_requests == options.most_waiting + 4
    for wrong, sentence in (
        ({"replicas": "two"}, "replicas is 'two'; expected a number from 1 up."),
        ({"replicas": 0}, "replicas is 0; expected a number from 1 up."),
        ({"step": "last"}, "step is 'last'; expected newest, best or a number."),
        ({"batch_sizes": "1,x"}, "batch_sizes is '1,x'"),
        ({"batchsizes": 3}, "batchsizes is no argument of it; expected some of workdir, "),
        ({"deadline_ms": "soon"}, "deadline_ms is 'soon'; expected a number above 0."),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            cluster.app(arguments | wrong)
    with pytest.raises(UserError, match="workdir is not set"):
        cluster.app({})


@pytest.fixture
def head() -> Iterator[str]:
    """The address of a Ray that goes on when a server has ended."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
           f"--port={port}", "--include-dashboard=false", "--disable-usage-stats"]  # fmt: skip
    running = subprocess.Popen(
        ray, env=os.environ | OPEN, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield f"127.0.0.1:{port}"
    running.send_signal(signal.SIGTERM)
    running.communicate()


def test_a_ray_that_runs_is_joined_and_left_as_it_was(workdir, head, images):
    port = "--port=0"
    for _ in range(2):
        server = joined(workdir, head, port)
        assert server.ask(INFER, request(images[:1]))[0] == 200
        port = f"--port={server.port}"  # It is free again.
        assert server.stop()[0] == 0


def joined(workdir: pathlib.Path, head: str, *flags: str) -> Server:
    """A server on a Ray that may still be starting."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return Server(workdir, "--ray", *flags, RAY_ADDRESS=head, **OPEN)
        except AssertionError:
            if time.monotonic() > end:
                raise


def test_what_cannot_be_served_is_one_sentence(finished):
    done = subprocess.run(
        [sys.executable, "-m", "urnet_jax", "serve", f"--workdir={finished}", "--port=0", "--ray"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | LOCAL, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and "urnet calibrate" in done.stderr
    assert "Traceback" not in done.stderr
