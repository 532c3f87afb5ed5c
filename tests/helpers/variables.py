"""Variables of a config's network, and which of them are of gates."""

from typing import Any

from flax import traverse_util

from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.nets import network
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.mode import Mode


def init_variables(config: Config) -> tuple[Any, Any]:
    """Initial params and batch_stats."""
    return network.init_variables(*config_lib.network(config), config.seed)


def split_gates(tree: Any) -> tuple[Any, Any]:
    """What lies in a ResNet's gates, and the rest."""
    flat = traverse_util.flatten_dict(tree)
    gates = {path: leaf for path, leaf in flat.items() if "gate" in path}
    rest = {path: leaf for path, leaf in flat.items() if "gate" not in path}
    return traverse_util.unflatten_dict(gates), traverse_util.unflatten_dict(rest)


def apply(
    graph: Any, params: Any, batch_stats: Any, images: Any, scale: Any, *, gates: Any = None,
    sigmoid: Any = None, kept: Any = None, train: bool = False, **mode: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Logits, gates and the batch_stats after the call; `mode` are fields of Mode."""
    inputs = GateInputs(scale, sigmoid=sigmoid, given=gates, kept=kept)
    statistics: Any = "batch" if train else "running"
    chosen = Mode(batch_norm=statistics, gates_batch_norm=statistics, **mode)
    output, batch_stats = network.apply(graph, params, batch_stats, images, inputs, chosen)
    return output.prediction, output.gates, batch_stats
