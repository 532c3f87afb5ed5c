"""Networks for dense prediction that tests of several rooms look at."""

from typing import Any

import pytest

from helpers import label_maps
from helpers.dense_networks import dense_config
from urnet_jax.train import loop


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("cells")
    label_maps.build(folder, "cells", {"train": label_maps.files(12), "test": label_maps.files(7)})
    return str(folder)


@pytest.fixture(scope="session")
def blocks(data_dir, tmp_path_factory) -> Any:
    workdir = tmp_path_factory.mktemp("dense") / "run"
    loop.train_and_evaluate(dense_config(data_dir), workdir)
    return workdir


@pytest.fixture(scope="session")
def both(data_dir, tmp_path_factory) -> Any:
    workdir = tmp_path_factory.mktemp("dense") / "both"
    loop.train_and_evaluate(dense_config(data_dir, "camvid_resnet18_bas:both"), workdir)
    return workdir
