"""Networks for dense prediction in plain numbers: what they are made of and what they cost."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.resnet_reference import network
from helpers.traced_macs import traced_macs
from helpers.variables import apply
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.cost import macs_per_sample
from urnet_jax.nets.dense.architecture import BINS, ChannelSegmenter, Segmenter

SMALL = Segmenter("imagenet", 18, 5, (45, 60), width=8, shortcut="B")
ARCHS: dict[str, Any] = {
    "plain": dataclasses.replace(SMALL, gated=False),
    "blocks": SMALL,
    "bottleneck": Segmenter("imagenet", 50, 5, 33, width=4, shortcut="B", gate_reduction=4),
    "channels": ChannelSegmenter("imagenet", 18, 5, (45, 60), width=8, shortcut="B", gate_group=4),
}


def test_strides_of_the_last_two_stages_become_dilations():
    stages = Segmenter("imagenet", 50, 19, (713, 713), width=64, shortcut="B").stages
    assert [(s.stride, s.dilation) for s in stages] == [(1, 1), (2, 1), (1, 2), (1, 4)]
    first, middle, last = stages[2].convolutions(entry=True)
    assert (first.dilation, middle.dilation, last.dilation) == (1, 2, 1)
    both = SMALL.stages[3].convolutions(entry=True)
    assert [c.dilation for c in both] == [4, 4] and [c.stride for c in both] == [1, 1]


@pytest.mark.parametrize(
    ("size", "expected"), [((45, 60), (6, 8)), ((180, 240), (23, 30)), (713, (90, 90))]
)
def test_features_keep_an_eighth_of_the_resolution(size, expected):
    assert dataclasses.replace(SMALL, image_size=size).output_size == expected


def test_the_cost_of_the_head_by_hand():
    # 64 channels of 8 at 6x8: each grid to 16, 64 + 4 * 16 in 3x3 to 16, and to 5 classes.
    pyramid = sum(n * n for n in BINS) * 64 * 16
    assert SMALL.head_macs == pyramid + 48 * (9 * 128 * 16 + 16 * 5)


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("size", [(45, 60), (32, 40), 33])
def test_the_cost_is_what_the_traced_network_convolves(name, size):
    """At any size of image; the last layer and gates are linear, and counted by themselves."""
    arch = dataclasses.replace(ARCHS[name], image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    images = jnp.zeros((1, height, width, 3))
    gates = jnp.ones((1, arch.num_gates))
    graph, params, stats = network(ARCHS[name])
    traced = jax.make_jaxpr(
        lambda images: apply(graph, params, stats, images, jnp.ones(1), gates=gates)[0]
    )(images)
    cost = arch.cost
    linear = cost.gate_macs + arch.classifier.macs(arch.output_size)
    assert traced_macs(traced.jaxpr, products=False) == cost.full_macs - linear
    assert macs_per_sample(arch, np.ones((1, arch.num_gates)))[0] == cost.full_macs
    assert macs_per_sample(arch, np.zeros((1, arch.num_gates)))[0] == cost.always_macs


def test_the_backbone_costs_what_that_for_classes_does_where_nothing_is_dilated():
    plain = Architecture("imagenet", 18, 5, 64, width=8, shortcut="B")
    dense = dataclasses.replace(SMALL, image_size=64)
    np.testing.assert_array_equal(dense.cost.unit_macs[:4], plain.cost.unit_macs[:4])
    # Behind that 4 and 16 times as many positions, but for strides in the first blocks.
    positions = plain.cost.unit_macs[[5, 7]] * [4, 16]
    np.testing.assert_array_equal(dense.cost.unit_macs[[5, 7]], positions)


def test_another_size_is_the_same_network_at_another_cost():
    large = SMALL.at((90, 120))
    assert large.describe().endswith("for 5 classes at 120x90 px")
    assert 3.5 < large.cost.full_macs / SMALL.cost.full_macs < 4.1
    assert dataclasses.replace(large, image_size=SMALL.image_size) == SMALL


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"family": "cifar", "depth": 20, "shortcut": "A"}, "four stages: set 'imagenet'"),
        ({"auxiliary_weight": -1.0}, "model.auxiliary_weight is -1.0; expected at least 0"),
        ({"width": 3, "gate_reduction": 1}, "model.width is 3; expected at least 4 channels"),
        ({"gate_network": "external"}, "model.gate_network is 'external'"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(SMALL, **fields)
