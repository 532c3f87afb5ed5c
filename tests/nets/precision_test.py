"""float32 means float32: every product asks for the precision that the config names."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from urnet_jax import config as config_lib
from urnet_jax.nets import network
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.mode import Build

ARCHS = {
    "cifar": Architecture("cifar", 14, 5, image_size=8, width=4, shortcut="B"),
    "external": Architecture("cifar", 8, 5, image_size=8, width=4, gate_network="external"),
    "imagenet": Architecture("imagenet", 50, 5, image_size=32, width=4, shortcut="B"),
}


def precisions(arch: Architecture, build: Build, *, backward: bool) -> dict[str, list[str]]:
    """Of the products in the program for a TPU, as lowered, by what multiplies."""
    graph, shapes = network.graph(arch, build), network.abstract_variables(arch, build)
    image = jax.ShapeDtypeStruct((2, arch.image_size, arch.image_size, 3), jnp.float32)

    def logits(params: Any, batch_stats: Any, images: Any) -> Any:
        output, _ = network.apply(graph, params, batch_stats, images, GateInputs(jnp.ones(2)))
        return output.prediction.sum()

    function = jax.grad(logits) if backward else logits
    lowered = jax.jit(function).trace(*shapes, image).lower(lowering_platforms=("tpu",))
    found: dict[str, list[str]] = {"convolution": [], "dot_general": []}
    for line in lowered.as_text().splitlines():
        for kind in found:
            if f"stablehlo.{kind}" in line:
                named = re.search(r"precision(?:_config)? = \[([^\]]*)\]", line)
                found[kind].append(named[1] if named else "none")
    return found


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("backward", [False, True])
def test_float32_is_multiplied_as_float32(name: str, backward: bool):
    for kind, found in precisions(ARCHS[name], Build(), backward=backward).items():
        assert found, kind
        assert all(text.count("HIGHEST") == 2 for text in found), (kind, set(found))


def test_another_precision_leaves_the_gates_exact():
    found = precisions(ARCHS["cifar"], Build(precision="default"), backward=False)
    assert not any("HIGHEST" in text for text in found["convolution"])
    # A gate's two layers, in each of three stages' entry and body; the head asks for less.
    exact = [text for text in found["dot_general"] if text.count("HIGHEST") == 2]
    assert len(exact) == 2 * 6 and len(found["dot_general"]) == 2 * 6 + 1


def test_configs_ask_for_float32_and_older_ones_too(tiny):
    assert config_lib.network(tiny())[1].precision == "highest"
    older = config_lib.to_json(tiny()).replace('"precision": "highest",', "")
    assert config_lib.network(config_lib.from_json(older))[1].precision == "highest"
