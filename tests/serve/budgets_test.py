"""From what a caller can pay to S."""

import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

import urnet_jax
from urnet_jax.errors import UserError
from urnet_jax.evaluate import inspection
from urnet_jax.evaluate.calibration import calibrate_workdir, halves
from urnet_jax.runs import profile as profile_lib
from urnet_jax.runs.profile import Profile
from urnet_jax.serve import budgets, profiling
from urnet_jax.serve.budgets import Asked
from urnet_jax.serve.predictor import Predictor

SECONDS = ((0.001, 0.004), (0.002, 0.008), (0.004, 0.016))
SCALES = (0.3, 0.6, 1.0)


@pytest.fixture(scope="module")
def calibrated(finished, tmp_path_factory) -> pathlib.Path:
    workdir = shutil.copytree(finished, tmp_path_factory.mktemp("calibrated") / "run")
    calibrate_workdir(workdir, scales=SCALES, images=100, progress=False)
    return workdir


@pytest.fixture(scope="module")
def predictor(calibrated) -> Predictor:
    loaded = urnet_jax.load(calibrated, batch_sizes=(1, 4))
    profile = Profile(
        SCALES, (50.0, 80.0, 90.0), SCALES, 9, (1, 4), SECONDS, {"device": budgets.device()}
    )
    return Predictor(loaded.bundle._replace(profile=profile), batch_sizes=(1, 4))


def scales(predictor: Predictor, count: int, **asked: object) -> list[float]:
    return budgets.scales(predictor, Asked(**asked), count).tolist()


def test_a_share_of_flops_is_met_as_calibrated(predictor):
    found = predictor.bundle.calibration
    assert found is not None
    # What was used on unseen images at S = 0.3 is asked for: S = 0.3 uses it.
    share = max(found.shares_unseen[0], 0.0)
    assert scales(predictor, 2, flops=share) == pytest.approx([0.3] * 2, abs=1e-6)
    assert scales(predictor, 1, flops=1.0) == [1.0]
    middle = (found.shares_unseen[1] + found.shares_unseen[2]) / 2
    assert scales(predictor, 1, flops=middle) == pytest.approx([0.8], abs=1e-6)
    each = scales(predictor, 2, flops=[share, 1.0])
    assert each == pytest.approx([0.3, 1.0], abs=1e-6)
    with pytest.raises(UserError, match="flops is 0.01, and the least .* was calibrated for is"):
        scales(predictor, 1, flops=0.01)


def test_a_time_is_met_by_what_was_measured(predictor):
    assert scales(predictor, 1, latency_ms=4) == [1.0]
    assert scales(predictor, 1, latency_ms=100) == [1.0]
    assert scales(predictor, 1, latency_ms=3) == pytest.approx([0.8])
    # Four images take 8 ms at S = 0.6; what the whole call may take is the least of all.
    assert scales(predictor, 4, latency_ms=[8, 9, 10, 90]) == pytest.approx([0.6] * 4)
    with pytest.raises(UserError, match="latency_ms is 3, and 4 images take 4 ms at S = 0.3"):
        scales(predictor, 4, latency_ms=3)
    # Six are answered as four and two, which are padded to four at the smallest S.
    six = 8 + (2 * 8 + 2 * 4) / 4
    assert scales(predictor, 6, latency_ms=six + 1e-3) == pytest.approx([0.6] * 6, abs=1e-3)
    wide = Predictor(predictor.bundle, batch_sizes=(4,))
    with pytest.raises(UserError, match="1 image takes 4 ms at S = 0.3"):
        scales(wide, 1, latency_ms=3)
    with pytest.raises(UserError, match="latency_ms is -1; expected numbers above 0"):
        scales(predictor, 4, latency_ms=-1)


def test_times_of_another_device_are_refused(predictor):
    profile = dataclasses.replace(predictor.bundle.profile, about={"device": "8 x TPU v5e"})
    other = Predictor(predictor.bundle._replace(profile=profile), batch_sizes=(1, 4))
    with pytest.raises(UserError, match="was measured on 8 x TPU v5e, not on 1 x cpu"):
        scales(other, 1, latency_ms=5)


def test_without_calibration_flops_cannot_be_met(finished):
    plain = urnet_jax.load(finished, batch_sizes=(1, 4))
    with pytest.raises(UserError, match="flops is set, and this network is not calibrated"):
        scales(plain, 1, flops=0.5)
    with pytest.raises(UserError, match="is not calibrated: run urnet calibrate"):
        profiling.profile_workdir(finished)


def test_what_is_measured_is_kept_with_the_checkpoint(calibrated, tmp_path, capsys):
    workdir = shutil.copytree(calibrated, tmp_path / "run")
    found: Any = profiling.profile_workdir(workdir, images=80, batch_sizes=(1, 4), progress=False)
    printed = capsys.readouterr().out
    assert "Top-1 on 80 images of digits train, and milliseconds for batches of so many" in printed
    run = inspection.load(workdir)
    assert profile_lib.read(workdir, run.meta.step) == found
    assert (found.scales, found.batch_sizes, found.images) == (SCALES, (1, 4), 80)
    # Top-1 and shares are those of evaluation on the images that calibration held back.
    evaluation = run.evaluate(SCALES, halves(run, 80)[1])
    np.testing.assert_allclose(found.top1_percent, 100 * evaluation.right.mean(axis=1))
    used = evaluation.flops.mean(axis=1) / evaluation.full_flops
    np.testing.assert_allclose(found.flops_shares, used)
    loaded = urnet_jax.load(workdir, batch_sizes=(1, 4))
    assert loaded.bundle.profile == found
    images = np.zeros((3, 8, 8, 1), np.uint8)
    assert (loaded(images, latency_ms=60_000).scale == 1).all()
