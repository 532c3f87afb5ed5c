"""A network that was calibrated and measured, for the tests of what serves it."""

import pathlib
import shutil

import numpy as np
import pytest

import urnet_jax
from urnet_jax.data.sources import open_split
from urnet_jax.data.splits import examples
from urnet_jax.evaluate.calibration import calibrate_workdir
from urnet_jax.serve.predictor import Predictor
from urnet_jax.serve.profiling import profile_workdir

BATCH_SIZES = (1, 4, 16)


@pytest.fixture(scope="session")
def measured(finished, tmp_path_factory) -> pathlib.Path:
    """The workdir of such a run."""
    from helpers.folders import once

    def make(folder: pathlib.Path) -> None:
        workdir = shutil.copytree(finished, folder / "run")
        calibrate_workdir(workdir, scales=(0.3, 0.6, 1.0), images=100, progress=False)
        profile_workdir(workdir, images=80, batch_sizes=BATCH_SIZES, progress=False)

    return once(tmp_path_factory, "measured", make) / "run"


@pytest.fixture(scope="session")
def predictor(measured) -> Predictor:
    return urnet_jax.load(measured, batch_sizes=BATCH_SIZES)


@pytest.fixture(scope="session")
def images(predictor) -> np.ndarray:
    """Forty test images."""
    return examples(open_split(predictor.config.data, "test"), np.arange(40))[0]
