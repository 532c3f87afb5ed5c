"""Fields that are each allowed, and contradict one another."""

import pytest

from helpers.configs import digits
from urnet_jax import config as config_lib
from urnet_jax.errors import UserError


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"gate__random_drop": "always"}, "set scale.beta to 0, or model.gated to False"),
        ({"scale__draw": "sample"}, "no samples share an S: set scale.draw to 'group'"),
        (
            {"accumulate_steps": 16},
            "A group of one S has 8 of the 64 images of a batch, which 16 parts",
        ),
        (
            {"shaping__weight": 1.0, "shaping__parts": 16},
            "a batch of 64 .* does not fall into shaping.parts 16 of at least 8 images",
        ),
        (
            {"shaping__weight": 1.0, "shaping__parts": 3},
            "does not fall into shaping.parts 3 of at least 8 images",
        ),
        (
            {"shaping__weight": 1.0, "shaping__mean": "scale", "accumulate_steps": 2},
            "a batch of 32 .* does not fall into 8 groups of one S of at least 8 images",
        ),
        (
            {
                "shaping__weight": 1.0,
                "shaping__mean": "scale",
                "scale__draw": "sample",
                "scale__loss": "sample",
            },
            "shaping.mean is 'scale', and with scale.draw 'sample' no samples share an S",
        ),
        ({"shaping__alpha": 0.0}, "shaping.alpha is 0.0; expected a number from 0.01 to 100"),
        (
            {"gate__random_drop": "always", "scale__beta": 0.0, "shaping__weight": 1.0},
            "set shaping.weight to 0, or model.gated to False",
        ),
        (
            {
                "scale__dual_rate": 0.1,
                "scale__schedule": "anchors",
                "scale__jitter": 0.1,
                "scale__anchors": (0.4, 0.6, 0.8),
            },
            "scale.jitter is 0.1, which brings S nearer to another of the anchors, 0.2 apart",
        ),
        (
            {"gate__random_drop": "always", "scale__beta": 0.0, "l0__weight": 1.0},
            "set l0.weight to 0, or model.gated to False",
        ),
        ({"l0__begins": 0.5, "l0__full": 0.2}, "l0.full is 0.2, less than l0.begins, 0.5; raise"),
        (
            {"gates__init_from": "runs/a", "gates__epochs": 0.0},
            "gates.init_from is runs/a, and gates.epochs is 0, so that nothing begins from it",
        ),
        ({"init__head": "new"}, "init.from names no file, so that all is new: name the file"),
        ({"scale__schedule": "anchors"}, "scale.anchors has none: name some S"),
        ({"scale__dual_rate": 0.1}, "set scale.schedule to 'anchors', or the rate to 0"),
        ({"scale__guard": 1.0}, "set model.gate_prior above 0, or scale.guard to 0"),
        ({"model__gate_prior": 9.0}, "set it to 'flops', or the prior to 0"),
        (
            {"model__gate_prior": 9.0, "scale__of": "flops"},
            "model.gate_bias is 0.5, which moves what model.gate_prior has S mean",
        ),
        (
            {
                "scale__dual_rate": 0.1,
                "scale__schedule": "anchors",
                "scale__of": "flops",
                "scale__anchors": (0.001, 1.0),
            },
            "scale.anchors holds 0.001, with scale.jitter 0.0, and 0.0",
        ),
        (
            {"gate__random_drop": "always", "scale__beta": 0.0, "distill__weight": 1.0},
            "set distill.weight to 0, or model.gated to False",
        ),
        ({"model__gated": False, "scale__schedule": "anchors"}, "scale.anchors has none"),
        (
            {
                "init__from": "x.th",
                "init__head": "new",
                "pretrain__epochs": 0.0,
                "joint__epochs": 0.0,
            },
            "init.head is 'new', and no phase trains it",
        ),
    ],
)
def test_fields_that_contradict_one_another(fields: dict[str, object], sentence: str):
    with pytest.raises(UserError, match=sentence):
        config_lib.validate(digits(**fields))


def test_external_gates_are_of_cifar_networks():
    config = config_lib.load("imagenet_resnet101")
    config.model.gate_network = "external"
    with pytest.raises(UserError, match="a ResNet-8, which only the cifar family has: set 'block'"):
        config_lib.validate(config)


@pytest.mark.parametrize(
    "fields", [{"model__gated": False}, {"scale__beta": 0.0}, {"scale__loss": "sample"}]
)
def test_groups_matter_only_to_a_scale_loss_of_groups(fields: dict[str, object]):
    config_lib.validate(digits(scale__draw="sample", accumulate_steps=16, **fields))


def test_parts_of_a_batch_may_share_whole_groups():
    config_lib.validate(digits(accumulate_steps=8))
