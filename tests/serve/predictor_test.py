"""A trained network as an application calls it."""

import concurrent.futures
from typing import Any

import jax
import numpy as np
import pytest

import urnet_jax
from urnet_jax.errors import UserError
from urnet_jax.evaluate import inspection
from urnet_jax.runs import export
from urnet_jax.train import loop


def test_an_answer_holds_together(predictor, images):
    answer = predictor(images, scale=0.6)
    assert answer.probabilities.shape == (40, 10) and answer.gates.shape == (40, 3)
    np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(answer.classes, answer.probabilities.argmax(axis=1))
    macs = predictor.arch.cost.macs(answer.gates)
    np.testing.assert_array_equal(answer.flops, 2.0 * np.asarray(macs))
    assert set(answer.scale) == {np.float32(0.6)}


def test_evaluation_agrees(measured, predictor, images):
    run = inspection.load(measured)
    found = run.evaluate((0.3, 0.8))
    for k, scale in enumerate((0.3, 0.8)):
        answer = predictor(images, scale=scale)
        np.testing.assert_array_equal(answer.gates, found.gates[k, :40])
        np.testing.assert_array_equal(answer.flops, found.flops[k, :40])
        np.testing.assert_array_equal(answer.classes, found.predictions[k, :40])


def test_each_image_has_its_own_scale_in_batches_of_any_size(predictor, images):
    scale = np.linspace(0.2, 1, 40)
    whole = predictor(images, scale=scale)
    for size in (1, 3, 5, 16, 23):
        part = predictor(images[:size], scale=scale[:size])
        np.testing.assert_allclose(part.probabilities, whole.probabilities[:size], atol=1e-5)
        np.testing.assert_array_equal(part.gates, whole.gates[:size])
        np.testing.assert_array_equal(part.scale, scale[:size].astype(np.float32))
    assert predictor.compilations == 3


def test_types_of_pixels_are_the_same(predictor, images):
    expected = predictor(images[:4], scale=0.5).probabilities
    for dtype in (np.float32, np.float64, np.float16, jax.numpy.bfloat16):
        found = predictor(images[:4].astype(dtype), scale=0.5)
        np.testing.assert_array_equal(found.probabilities, expected)


def test_without_a_budget_the_whole_network_runs(predictor, images):
    answer = predictor(images)
    assert (answer.scale == 1).all() and (answer.flops <= predictor.full_flops).all()
    empty = predictor(images[:0])
    assert empty.classes.shape == (0,) and empty.probabilities.shape == (0, 10)


def test_many_threads_get_what_one_gets(measured, images):
    fresh = urnet_jax.load(measured, batch_sizes=(1, 4, 16))
    scale = np.linspace(0.2, 1, 40).astype(np.float32)

    def ask(k: int) -> Any:
        size = (1, 4, 16)[k % 3]
        rows = (np.arange(size) + k) % 40
        return rows, fresh(images[rows], scale=scale[rows])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(48)))
    assert fresh.compilations == 3
    expected = fresh(images, scale=scale)
    for rows, answer in answers:
        np.testing.assert_array_equal(answer.gates, expected.gates[rows])
        np.testing.assert_allclose(answer.probabilities, expected.probabilities[rows], atol=1e-5)


def test_warming_up_compiles_all_that_is_ever_needed(measured, images):
    fresh = urnet_jax.load(measured, batch_sizes=(2, 8))
    compiled: list[str] = []  # what JAX itself says, not the predictor

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if "compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    fresh.warm_up()
    assert compiled
    compiled.clear()
    for size in range(12):
        fresh(images[:size], scale=np.linspace(0, 1, size))
    assert not compiled
    assert fresh.compilations == 2


def _on_eight(path: str, images: np.ndarray, scale: np.ndarray) -> Any:
    predictor = urnet_jax.load(path, batch_sizes=(1, 16))
    answer = predictor(images, scale=scale)
    return predictor.batch_sizes, answer.probabilities, answer.gates


def test_devices_share_a_batch(eight_devices, measured, predictor, images):
    scale = np.linspace(0.2, 1, 40).astype(np.float32)
    sizes, probabilities, gates = eight_devices(_on_eight, str(measured), images, scale)
    assert sizes == (8, 16)
    expected = predictor(images, scale=scale)
    np.testing.assert_array_equal(gates, expected.gates)
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-5)


def test_a_bundle_answers_as_its_run_does(measured, predictor, images, tmp_path):
    export.export_bundle(measured, tmp_path / "bundle", "newest")
    answer = urnet_jax.load(tmp_path / "bundle")(images, scale=0.6)
    expected = predictor(images, scale=0.6)
    np.testing.assert_array_equal(answer.gates, expected.gates)
    np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-5)
    with pytest.raises(UserError, match="is a bundle, which holds one network"):
        urnet_jax.load(tmp_path / "bundle", "best")


@pytest.mark.usefixtures("unchecked")
def test_what_is_wrong_is_one_sentence(predictor, images):
    def refused(sentence: str, wrong: Any = images, **budget: Any) -> None:
        with pytest.raises(UserError, match=sentence):
            predictor(wrong, **budget)

    refused("that of one image; expected .* write images.None.", images[0])
    refused(r"images has the shape \(40, 7, 8, 1\); expected \[n, 8, 8, 1\]", images[:, :7])
    refused("images is of int64; expected uint8", images.astype(np.int64))
    refused("not finite", np.where(images > 3, np.nan, images))
    refused("outside of 0 to 255", images.astype(np.float32) - 1)
    refused("images are no array", [[1, 2], [3]])
    refused("scale is 1.5; expected numbers from 0 to 1", scale=1.5)
    refused("scale is -0.1;", scale=np.full(40, -0.1))
    refused("scale is nan;", scale=float("nan"))
    refused(r"scale has the shape \(3,\); expected a number, or one for each", scale=[0.1] * 3)
    refused("scale is 'half'; expected a number", scale="half")
    refused("scale and flops are both set; set one budget", scale=0.5, flops=0.5)


def test_a_network_without_a_scale_says_so(tiny, tmp_path, images):
    config = tiny({"model.gated": False, "gates.epochs": 0.0, "joint.epochs": 0.0})
    loop.train_and_evaluate(config, tmp_path / "plain")
    plain = urnet_jax.load(tmp_path / "plain", batch_sizes=(16,))
    answer = plain(images[:5])
    assert (answer.flops == plain.full_flops).all() and (answer.scale == 1).all()
    with pytest.raises(UserError, match="scale is set, and the gates of this network do not see"):
        plain(images, scale=0.5)


def test_what_cannot_be_loaded_is_one_sentence(tmp_path, measured):
    with pytest.raises(UserError, match="holds no checkpoint"):
        urnet_jax.load(tmp_path)
    with pytest.raises(UserError, match="batch_sizes is"):
        urnet_jax.load(measured, batch_sizes=(0, 4))
