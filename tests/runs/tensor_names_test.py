"""Names and axes of networks that no room of this package knows."""

import dataclasses

import pytest

from urnet_jax.runs.tensor_names import Place, TensorNames, listed


@dataclasses.dataclass(frozen=True)
class Mixer:
    stacked = ("layers",)

    def describe(self) -> str:
        return "Mixer"


SHAPES = {
    ("embed", "embedding"): (100, 8),
    ("head", "bias"): (3,),
    ("head", "kernel"): (8, 3),
    ("layers", "conv", "kernel"): (2, 5, 7, 3, 4),  # two units of 5x7 HWIO
    ("layers", "gate", "fc", "kernel"): (2, 8, 1),
    ("layers", "norm", "mean"): (2, 4),
    ("layers", "norm", "scale"): (2, 4),
    ("scale",): (),
    ("time", "kernel"): (9, 3, 4),  # of a convolution in one dimension
    ("time", "scale"): (4,),
}


def test_every_kind_of_network_has_names():
    names = TensorNames(Mixer())
    places = names.places(SHAPES, {("layers", "gate", "fc", "kernel")})
    assert {name: place.shape for name, place in places.items()} == {
        "embed.weight": (100, 8),
        "head.bias": (3,),
        "head.weight": (3, 8),
        "layers.0.conv.weight": (4, 3, 5, 7),
        "layers.1.conv.weight": (4, 3, 5, 7),
        "layers.0.gate.fc.weight": (1, 8),
        "layers.1.gate.fc.weight": (1, 8),
        "layers.0.norm.running_mean": (4,),
        "layers.1.norm.running_mean": (4,),
        "layers.0.norm.weight": (4,),
        "layers.1.norm.weight": (4,),
        "weight": (),
        "time.weight": (4, 3, 9),
        "time.scale": (4,),  # the kernel has the name that it would have
    }
    path = ("layers", "gate", "fc", "kernel")
    assert places["layers.1.gate.fc.weight"] == Place(path, 1, (1, 0), (1, 8), True)
    assert sum(place.of_gate for place in places.values()) == 2
    assert names.known("module.head.bias") == names.written("head.bias") == "head.bias"
    assert names.check_kind({}, "x.th") == "Mixer"


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], ""), (["b", "a"], "a, b"), ("gfedcba", "a, b, c, d, e and 2 more")],
)
def test_a_list_of_names_is_sorted_and_short(names, expected):
    assert listed(names) == expected
