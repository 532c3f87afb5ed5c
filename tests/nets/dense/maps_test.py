"""What networks for dense prediction say of images is shown."""

import dataclasses

import numpy as np
import pytest

from helpers import label_maps
from helpers.dense_networks import dense_config
from urnet_jax.errors import UserError
from urnet_jax.evaluate import calibration, inspection, maps
from urnet_jax.evaluate.evaluation import summarize
from urnet_jax.evaluate.page import maps as maps_page
from urnet_jax.train import loop


def test_what_has_no_class_is_not_looked_at_as_if_it_had(blocks):
    run = inspection.load(blocks)
    gates = run.gates((0.5,))
    for refused in (inspection.usage_by_class, inspection.right_and_wrong):
        with pytest.raises(UserError, match="have a class for each pixel, and none of their own"):
            refused(gates)
    with pytest.raises(UserError, match="look at its images with evaluate.maps.plot"):
        run.plot_samples(inspection.samples(gates))


def test_images_are_shown_for_what_they_are_first_in(blocks):
    found = inspection.load(blocks).evaluate((0.5, 1.0))
    right = np.array([[0.2, 0.9, 0.5], [0.6, 0.9, 0.5]])
    few = dataclasses.replace(
        found, index=found.index[:3], correct=right, flops=np.array([[1.0, 2, 3], [3, 3, 3]])
    )
    assert maps_page.chosen_samples(few) == {
        1: ["most pixels right"],
        0: ["fewest pixels right", "loses most by a smaller S", "costs least"],
        2: ["costs most"],
    }
    one = dataclasses.replace(few, scales=(1.0,), correct=right[1:], flops=few.flops[1:])
    assert maps_page.chosen_samples(one) == {
        1: ["most pixels right"], 2: ["fewest pixels right"],
    }  # fmt: skip


def test_an_image_of_no_dataset_is_answered_at_its_own_size(blocks):
    run = inspection.load(blocks)
    shown = maps.predict(run, (0.5,), (0,))
    np.testing.assert_array_equal(maps.answer(run, shown.images[0], 0.5), shown.answers[0, 0])
    (wide, _) = label_maps.pair()
    said = maps.answer(run, np.asarray(wide.resize((120, 80))), 0.5)
    assert said.shape == (80, 120) and 0 <= said.min() and said.max() < label_maps.CLASSES
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(UserError, match="expected uint8 of \\[height, width, 3\\]"):
            maps.answer(run, wrong)
    with pytest.raises(UserError, match="samples is empty"):
        maps.predict(run, (1.0,), ())


def test_classes_are_told_by_name(blocks):
    found = inspection.load(blocks).evaluate((0.5, 1.0))
    named = maps.by_class(found, [f"of {n}" for n in range(label_maps.CLASSES)])
    assert named.columns.tolist() == [0.5, 1.0] and named.index[3] == "of 3"
    np.testing.assert_allclose(named.mean(), summarize(found)["miou_percent"])


def test_a_plain_network_is_looked_at_too_and_not_calibrated(data_dir, tmp_path):
    fields = {"joint.epochs": 0.4, "joint.warmup_epochs": 0.0}
    loop.train_and_evaluate(dense_config(data_dir, "camvid_resnet18:plain", **fields), tmp_path)
    run = inspection.load(tmp_path)
    assert maps.predict(run, (1.0,), (0,)).answers.shape == (1, 1, 40, 56)
    assert len(maps.by_class(run.evaluate((1.0,)))) == label_maps.CLASSES
    with pytest.raises(UserError, match="of a plain network, which has no trained gates"):
        calibration.calibrate_workdir(tmp_path)


def test_only_maps_are_drawn_as_maps(finished):
    run = inspection.load(finished)
    with pytest.raises(UserError, match="says one class for an image, and no map"):
        maps.predict(run, (1.0,), (0,))
