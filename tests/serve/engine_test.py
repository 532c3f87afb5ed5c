"""Requests from many threads, answered by one: none is lost, whatever happens."""

import concurrent.futures
import threading
import time
from typing import Any

import numpy as np
import pytest

import urnet_jax
from urnet_jax.errors import UserError
from urnet_jax.serve.engine import Engine, Failed
from urnet_jax.serve.predictor import Predictor
from urnet_jax.serve.schedule.policy import Bending
from urnet_jax.serve.schedule.request import Shed

HOUR_S = 3600.0


@pytest.fixture
def engine(predictor):
    running = Engine(predictor)
    yield running
    running.stop()


def soon() -> float:
    """A deadline that a busy machine meets too."""
    return time.monotonic() + HOUR_S


def test_an_answer_is_the_predictors(engine, predictor, images):
    pixels = images.astype(np.float32)
    asked = [
        engine.submit(pixels[start : start + size], soon(), min_scale=scale, max_scale=scale)
        for start, size, scale in ((0, 1, 0.3), (1, 7, 0.6), (8, 16, 1.0), (24, 3, 0.45))
    ]
    for future, (start, size, scale) in zip(
        asked, ((0, 1, 0.3), (1, 7, 0.6), (8, 16, 1.0), (24, 3, 0.45)), strict=True
    ):
        answer = future.result(60)
        expected = predictor(images[start : start + size], scale=scale)
        np.testing.assert_array_equal(answer.prediction.gates, expected.gates)
        np.testing.assert_allclose(
            answer.prediction.probabilities, expected.probabilities, atol=1e-5
        )
        np.testing.assert_allclose(answer.prediction.scale, scale)
        assert answer.queue_s >= 0 and answer.compute_s > 0


def test_all_are_answered_and_nothing_is_compiled(engine, predictor, images):
    pixels, before = images.astype(np.float32), predictor.compilations

    def ask(k: int) -> tuple[np.ndarray, Any]:
        rows = (np.arange(1 + k % 5) + k) % 40
        return rows, engine.submit(pixels[rows], soon()).result(60).prediction

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(200)))
    assert predictor.compilations == before == 3
    for rows, found in answers:
        expected = predictor(images[rows], scale=found.scale)
        np.testing.assert_array_equal(found.classes, expected.classes)
        np.testing.assert_array_equal(found.gates, expected.gates)
    assert engine.waiting == 0


def test_what_cannot_be_in_time_is_refused_at_once(engine, images):
    pixels, now = images[:1].astype(np.float32), time.monotonic()
    with pytest.raises(Shed) as shed:
        engine.submit(pixels, now - 1)
    assert shed.value.reason == "impossible"
    # One that was a minute in coming, of the minute that it had, may well be sent again.
    with pytest.raises(Shed) as shed:
        engine.submit(pixels, now, arrival=now - 60)
    assert shed.value.reason == "late" and shed.value.retry_after_s > 0


def test_what_it_took_it_answers_before_it_ends(predictor, images):
    engine = Engine(predictor)
    pixels = images.astype(np.float32)
    futures = [engine.submit(pixels[:16], soon()) for _ in range(30)]
    engine.stop()
    assert all(future.done() and future.result().prediction.classes.size for future in futures)
    with pytest.raises(Shed, match="about to end"):
        engine.submit(pixels[:1], soon())
    assert not any(thread.name == "urnet-engine" for thread in threading.enumerate())


def test_time_between_batches_is_no_time_for_requests(predictor, images):
    class Slow(Bending):
        def choose(self, requests: Any, now: float, costs: Any, outlook: Any) -> Any:
            time.sleep(0.3)
            return super().choose(requests, now, costs, outlook)

    engine = Engine(predictor, policy=Slow())
    pixels = images.astype(np.float32)
    futures = [engine.submit(pixels[:16], soon()) for _ in range(10)]
    engine.stop()
    assert all(future.done() for future in futures)
    # A batch takes some milliseconds.
    assert engine.correction > 3


def test_who_gave_up_waiting_disturbs_nobody(predictor, images):
    held, begun = threading.Event(), threading.Event()

    def observe(event: str, what: object) -> None:
        if event == "batch":
            begun.set()
            held.wait(60)

    engine = Engine(predictor, observe=observe)
    pixels = images.astype(np.float32)
    futures = [engine.submit(pixels[:16], soon()) for _ in range(20)]
    assert begun.wait(60)
    cancelled = [future for future in futures[-10:] if future.cancel()]
    held.set()
    engine.stop()
    assert len(cancelled) == 10
    # Nothing was computed for them.
    assert sum(future.cancelled() for future in futures) == len(cancelled)
    assert all(future.cancelled() or future.result().prediction for future in futures)


def test_another_network_takes_over_without_a_request_lost(measured, predictor, images):
    events: list[str] = []
    engine = Engine(predictor, observe=lambda event, what: events.append(event))
    pixels = images.astype(np.float32)
    other = urnet_jax.load(measured, batch_sizes=predictor.batch_sizes)
    stop = threading.Event()
    futures: list[Any] = []

    def ask() -> None:
        while not stop.is_set():
            futures.append(engine.submit(pixels[:4], soon()))
            futures[-1].result(60)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    engine.swap(other)
    assert engine.predictor is other
    time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    engine.stop()
    assert len(futures) >= 4 and all(future.result().prediction.classes.size for future in futures)
    assert events.count("answered") == len(futures)
    smaller = urnet_jax.load(measured, batch_sizes=(1,))
    with pytest.raises(UserError, match="start another server for it"):
        engine.swap(smaller)


class Failing(Predictor):
    """A predictor whose device fails every second time."""

    calls = 0

    def predict(self, images, scale):
        type(self).calls += 1
        if type(self).calls > 3 and type(self).calls % 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return super().predict(images, scale)


def test_a_device_that_fails_is_told_and_survived(predictor, images):
    engine = Engine(Failing(predictor.bundle, batch_sizes=predictor.batch_sizes))
    told = []
    for _ in range(10):
        future = engine.submit(images[:1].astype(np.float32), soon())
        told.append(future.exception(60))
    engine.stop()
    assert {type(error) for error in told} == {Failed, type(None)}


class Raising:
    """A policy with a defect."""

    def choose(self, requests, now, costs, outlook):
        raise ZeroDivisionError("no batch")


def test_a_defect_leaves_nobody_waiting(predictor, images, capfd):
    engine = Engine(predictor, policy=Raising())
    future = engine.submit(images[:1].astype(np.float32), soon())
    assert isinstance(future.exception(60), Failed)
    assert not engine.alive
    with pytest.raises(Failed, match="The engine has failed: no batch"):
        engine.submit(images[:1].astype(np.float32), soon())
    engine.stop()
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_whoever_observes_cannot_stop_it(predictor, images, capfd):
    def observe(event: str, what: object) -> None:
        raise ValueError(event)

    engine = Engine(predictor, observe=observe)
    for _ in range(3):
        answer = engine.submit(images[:1].astype(np.float32), soon()).result(60)
        assert answer.step == predictor.bundle.meta.step
    engine.stop()
    assert engine.alive and "ValueError: answered" in capfd.readouterr().err


def test_what_cannot_be_served_is_one_sentence(finished):
    with pytest.raises(UserError, match="nobody has measured how long this network takes"):
        Engine(urnet_jax.load(finished))
