"""Small networks of every kind, and their state dicts, for the tests of pretrained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from urnet_jax.nets import network
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.channels.architecture import ChannelGated
from urnet_jax.nets.mode import Build
from urnet_jax.runs import pretrained

ARCHS = {
    "A": Architecture("cifar", 20, 5, image_size=8, width=4),
    "pool": Architecture("cifar", 8, 5, image_size=8, width=4, shortcut="pool", gated=False),
    "B": Architecture("cifar", 14, 5, image_size=8, width=4, shortcut="B", gated=False),
    "normed": Architecture("cifar", 14, 5, image_size=8, width=4, gate_norm=True),
    "external": Architecture(
        "cifar", 14, 5, image_size=8, width=4, shortcut="B", gate_network="external"
    ),
    "basic": Architecture("imagenet", 18, 5, image_size=32, width=4, shortcut="B"),
    "bottleneck": Architecture(
        "imagenet", 50, 5, image_size=32, width=16, shortcut="B", gate_reduction=16
    ),
    "channels": ChannelGated("cifar", 14, 5, image_size=8, width=4, gate_group=2),
    "both": ChannelGated("cifar", 14, 5, image_size=8, width=4, gate_group=2, gate_blocks=True),
    "bottleneck channels": ChannelGated(
        "imagenet", 50, 5, image_size=32, width=4, shortcut="B", gate_scale=False
    ),
}


def variables(arch: Any, seed: int = 0) -> tuple[Any, Any]:
    """Params and batch_stats without a trivial number in them."""
    rng = np.random.default_rng(seed)
    params, batch_stats = (
        jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype), tree)
        for tree in network.abstract_variables(arch, Build())
    )
    return params, batch_stats


def exported(arch: Any, seed: int = 0) -> dict[str, np.ndarray]:
    return pretrained.export_state_dict(*variables(arch, seed), arch)


def assert_identical(tree: Any, other: Any) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype("float32")}


def without_gates(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensor for name, tensor in tensors.items() if "gate" not in name.split(".")}
