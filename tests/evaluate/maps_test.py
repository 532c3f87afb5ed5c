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


def test_what_has_no_class_is_not_looked_at_as_if_it_had(segmenter):
    run = inspection.load(segmenter)
    gates = run.gates((0.5,))
    for refused in (inspection.usage_by_class, inspection.right_and_wrong):
        with pytest.raises(UserError, match="have a class for each pixel, and none of their own"):
            refused(gates)
    with pytest.raises(UserError, match="look at its images with evaluate.maps.plot"):
        run.plot_samples(inspection.samples(gates))


def test_images_are_shown_for_what_they_are_first_in(segmenter):
    found = inspection.load(segmenter).evaluate((0.5, 1.0))
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


def test_an_image_of_no_dataset_is_answered_at_its_own_size(segmenter):
    run = inspection.load(segmenter)
    shown = maps.predict(run, (0.5,), (0,))
    np.testing.assert_array_equal(maps.answer(run, shown.images[0], 0.5), shown.answers[0, 0])
    # The first image is of 64 x 96 pixels, of which evaluation sees 37 x 56.
    (wide, _) = label_maps.pair()
    seen = shown.answers[0, 0][:37, :56]
    rows, columns = (np.arange(64) * 37 + 18) // 64, (np.arange(96) * 56 + 28) // 96
    said = maps.answer(run, np.asarray(wide), 0.5)
    assert said.shape == (64, 96)
    assert (said == seen[rows][:, columns]).mean() > 0.97  # But for centres between two pixels.
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(UserError, match="expected uint8 of \\[height, width, 3\\]"):
            maps.answer(run, wrong)
    with pytest.raises(UserError, match="samples is empty"):
        maps.predict(run, (1.0,), ())


def test_classes_are_told_by_name(segmenter):
    found = inspection.load(segmenter).evaluate((0.5, 1.0))
    named = maps.by_class(found, [f"of {n}" for n in range(label_maps.CLASSES)])
    assert named.columns.tolist() == [0.5, 1.0] and named.index[3] == "of 3"
    np.testing.assert_allclose(named.mean(), summarize(found)["miou_percent"])
    with pytest.raises(UserError, match="class_names are 2, and the network has 24 classes"):
        maps.by_class(found, ("a", "b"))


def test_a_plain_network_is_looked_at_too_and_not_calibrated(cells, tmp_path):
    fields = {"joint.epochs": 0.4, "joint.warmup_epochs": 0.0}
    loop.train_and_evaluate(dense_config(cells, "camvid_resnet18:plain", **fields), tmp_path)
    run = inspection.load(tmp_path)
    assert maps.predict(run, (1.0,), (0,)).answers.shape == (1, 1, 40, 56)
    assert len(maps.by_class(run.evaluate((1.0,)))) == label_maps.CLASSES
    with pytest.raises(UserError, match="plain PSPNet-18 .* has no trained gates to look into"):
        run.gates()
    with pytest.raises(UserError, match="of a plain network, which has no trained gates"):
        calibration.calibrate_workdir(tmp_path)


def test_only_maps_are_drawn_as_maps(finished):
    run = inspection.load(finished)
    with pytest.raises(UserError, match="says one class for an image, and no map"):
        maps.predict(run, (1.0,), (0,))
