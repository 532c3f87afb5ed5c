"""Evaluation on a split of which some images cannot be decoded, and are left out."""

import numpy as np
import pytest

from helpers.configs import one_pass
from helpers.own_data import prepare
from urnet_jax import config as config_lib
from urnet_jax.data.sources import open_split
from urnet_jax.evaluate import evaluation
from urnet_jax.evaluate.step import make_eval_step
from urnet_jax.nets import network
from urnet_jax.xla import sharding


@pytest.mark.parametrize("augment", ["none", "random_resized_crop"])
def test_images_that_cannot_be_decoded_are_no_examples(tmp_path, augment):
    prepare(tmp_path, "mydigits", {"test": 20}, files={3: b"no image", 4: b"neither"}, named=True)
    prepare(tmp_path, "whole", {"test": 20}, named=True)
    config = one_pass({"model.depth": 8, "model.gate_bias": 0.0})
    config.data.update(
        name="whole",
        num_classes=10,
        dir=str(tmp_path),
        image_size=8,
        augment=augment,
        unreadable="skip",
    )
    variables = network.init_variables(*config_lib.network(config), config.seed)
    mesh = sharding.make_mesh()
    step, found = make_eval_step(config, mesh=mesh), {}
    for name in ("mydigits", "whole"):
        config.data.name = name
        split = open_split(config.data, "test")
        found[name] = evaluation.evaluate(
            step, *variables, split, config, (0.2, 1.0), 8, False, mesh=mesh
        )
    some, whole = found["mydigits"], found["whole"]
    assert len(some.index) == 18 and len(whole.index) == 20
    assert evaluation.summarize(some)["examples"].tolist() == [18, 18]
    np.testing.assert_array_equal(some.labels, whole.labels[some.index])
    np.testing.assert_array_equal(some.predictions, whole.predictions[:, some.index])
    np.testing.assert_array_equal(some.gates, whole.gates[:, some.index])
    np.testing.assert_allclose(some.loss, whole.loss[:, some.index], rtol=1e-5)
