"""The default config with other values."""

from typing import Any

from ml_collections import ConfigDict

from urnet_jax import config as config_lib

ONE_PASS: dict[str, Any] = {
    "model.gate_prior": 0.0, "model.gate_norm": False, "model.gate_bias": 0.5,
    "gate.sigmoid_probability": 0.1, "gate.straight_through": False, "gate.noise": False,
    "scale.of": "blocks", "scale.schedule": "ranged", "scale.min": 0.1, "scale.max": 1.1,
    "scale.draw": "group", "scale.loss": "group", "scale.usage": "step", "scale.beta": 32.0,
    "scale.anchors": (), "scale.jitter": 0.0, "scale.dual_rate": 0.0, "scale.guard": 0.0,
    "distill.weight": 0.0, "distill.cross_entropy": 1.0,
    "gates.learning_rate": 0.1, "joint.learning_rate": 0.05,
}  # fmt: skip
"""How most tests train: one pass a step, whatever recipe the shipped configs have."""


def one_pass(fields: dict[str, Any] | None = None) -> config_lib.Config:
    """The default config, trained with one pass a step; `fields` change it further."""
    config = config_lib.load("digits")
    config.update_from_flattened_dict(ONE_PASS | (fields or {}))
    return config


def digits(**overrides: object) -> config_lib.Config:
    """The same; model__depth=8 sets model.depth, of whatever type."""
    tree = one_pass().to_dict()  # plain dicts: a ConfigDict would cast True to 1.0 in a float field
    for name, value in overrides.items():
        section, _, leaf = name.rpartition("__")
        (tree[section] if section else tree)[leaf] = value
    return ConfigDict(tree).lock()
