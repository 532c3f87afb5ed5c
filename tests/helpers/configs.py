"""The default config with other values."""

from ml_collections import ConfigDict

from urnet_jax import config as config_lib


def digits(**overrides: object) -> config_lib.Config:
    """The default config; model__depth=8 sets model.depth, of whatever type."""
    config = config_lib.load("digits")
    tree = config.to_dict()  # plain dicts: a ConfigDict would cast True to 1.0 in a float field
    for name, value in overrides.items():
        section, _, leaf = name.rpartition("__")
        (tree[section] if section else tree)[leaf] = value
    return ConfigDict(tree).lock()
