"""A network that was calibrated and measured, for the tests of what serves it."""

import numpy as np
import pytest

import urnet_jax
from urnet_jax.data.sources import open_split
from urnet_jax.data.splits import examples
from urnet_jax.serve.predictor import Predictor

BATCH_SIZES = (1, 4, 16)


@pytest.fixture(scope="session")
def predictor(measured) -> Predictor:
    return urnet_jax.load(measured, batch_sizes=BATCH_SIZES)


@pytest.fixture(scope="session")
def images(predictor) -> np.ndarray:
    """Forty test images."""
    return examples(open_split(predictor.config.data, "test"), np.arange(40))[0]
