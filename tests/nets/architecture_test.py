import dataclasses

import numpy as np
import pytest

from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.residual import IMAGENET_BLOCKS, StageSpec

RESNET20 = Architecture("cifar", 20, num_classes=10, image_size=32)
RESNET50 = Architecture(
    "imagenet", 50, num_classes=1000, image_size=224, width=64, shortcut="B", gate_reduction=16
)


def test_stages_of_a_cifar_network():
    assert RESNET20.stages == (
        StageSpec("basic", 3, 16, 16, 16, 1),
        StageSpec("basic", 3, 16, 32, 32, 2),
        StageSpec("basic", 3, 32, 64, 64, 2),
    )
    assert [stage.changes_shape for stage in RESNET20.stages] == [False, True, True]


def test_stages_of_a_bottleneck_network():
    assert RESNET50.stages == (
        StageSpec("bottleneck", 3, 64, 64, 256, 1),
        StageSpec("bottleneck", 4, 256, 128, 512, 2),
        StageSpec("bottleneck", 6, 512, 256, 1024, 2),
        StageSpec("bottleneck", 3, 1024, 512, 2048, 2),
    )
    assert all(stage.changes_shape for stage in RESNET50.stages)


def test_stages_of_a_basic_imagenet_network():
    resnet34 = dataclasses.replace(RESNET50, depth=34)
    assert resnet34.stages == (
        StageSpec("basic", 3, 64, 64, 64, 1),
        StageSpec("basic", 4, 64, 128, 128, 2),
        StageSpec("basic", 6, 128, 256, 256, 2),
        StageSpec("basic", 3, 256, 512, 512, 2),
    )
    assert [stage.changes_shape for stage in resnet34.stages] == [False, True, True, True]


def test_width_scales_every_stage():
    narrow = dataclasses.replace(RESNET20, width=4)
    assert [stage.out_channels for stage in narrow.stages] == [4, 8, 16]


@pytest.mark.parametrize(("depth", "blocks"), [(8, 3), (20, 9), (56, 27), (110, 54), (1202, 600)])
def test_blocks_of_cifar_depths(depth, blocks):
    assert dataclasses.replace(RESNET20, depth=depth).num_blocks == blocks


@pytest.mark.parametrize("depth", IMAGENET_BLOCKS)
def test_depth_counts_the_layers_with_weights(depth):
    arch = dataclasses.replace(RESNET50, depth=depth)
    layers_per_block = 2 if arch.stages[0].block == "basic" else 3
    # The URNet paper names its shortened networks without their stem and head.
    stem_and_head = 0 if depth in (72, 75, 84) else 2
    assert layers_per_block * arch.num_blocks + stem_and_head == depth


@pytest.mark.parametrize(
    ("image_size", "expected"), [(224, 56), (225, 57), (64, 16), (33, 9), (1, 1)]
)
def test_an_imagenet_stem_quarters_the_image_rounding_up(image_size, expected):
    assert dataclasses.replace(RESNET50, image_size=image_size).stage_input_size == expected


def test_a_cifar_stem_keeps_the_size():
    assert dataclasses.replace(RESNET20, image_size=9).stage_input_size == 9


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"depth": 21}, r"model\.depth is 21; .* 6n\+2 .*: the nearest is 20\."),
        ({"depth": 2}, r"model\.depth is 2; .*: the nearest is 8\."),
        ({"depth": -4}, r"model\.depth is -4; .*: the nearest is 8\."),
        ({"family": "mnist"}, r"model\.family is 'mnist'; expected 'cifar' or 'imagenet'\."),
        ({"shortcut": "C"}, r"model\.shortcut is 'C'; expected 'A', 'pool' or 'B'\."),
        ({"gate_reduction": 0}, r"model\.gate_reduction is 0; expected 1 to 16, "),
        ({"gate_reduction": 17}, r"model\.gate_reduction is 17; expected 1 to 16, "),
        ({"gate_network": "external", "gate_norm": True}, r"gate_norm is True and .*'external', "),
    ],
)
def test_a_bad_cifar_network_is_one_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        dataclasses.replace(RESNET20, **change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"depth": 20}, r"model\.depth is 20; .* one of the depths 18, 34, 50, .*152\."),
        ({"shortcut": "A"}, r"model\.shortcut is 'A'; .* use projections: set 'B'\."),
        ({"gate_reduction": 65}, r"model\.gate_reduction is 65; expected 1 to 64, "),
    ],
)
def test_a_bad_imagenet_network_is_one_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(RESNET50, **change)


def test_describe_names_what_tells_networks_apart():
    assert RESNET20.describe() == (
        "gated ResNet-20 (cifar, width 16, shortcut A) for 10 classes at 32 px"
    )
    assert dataclasses.replace(RESNET50, gated=False).describe() == (
        "plain ResNet-50 (imagenet, width 64, shortcut B) for 1000 classes at 224 px"
    )


def test_architectures_compare_and_hash_by_value():
    assert dataclasses.replace(RESNET20) == RESNET20
    assert len({RESNET20, dataclasses.replace(RESNET20), RESNET50}) == 2


def test_blocks_open_in_an_order_in_which_s_is_the_share_of_flops():
    arch = Architecture("cifar", 20, num_classes=10, image_size=32, gate_prior=20.0)
    order = np.argsort(arch.opens_at)
    # Those that change shape, the first of stage 1, then one of each stage from the last one on.
    np.testing.assert_array_equal(order + 1, [4, 7, 1, 8, 5, 2, 9, 6, 3])
    shares = arch.cost.unit_macs[order] / arch.cost.full_macs
    before = arch.cost.always_macs / arch.cost.full_macs + np.cumsum(shares) - shares
    np.testing.assert_allclose(np.array(arch.opens_at)[order], before + shares / 2)
    assert min(arch.opens_at) > 0 and max(arch.opens_at) < 1


def test_every_block_has_its_place_in_the_order():
    arch = Architecture("imagenet", 50, 10, 64, width=16, shortcut="B", gate_prior=5.0)
    assert len(set(arch.opens_at)) == arch.num_blocks == 16
    entries = [0, 3, 7, 13]  # the first block of stage 1 changes shape, too
    assert sorted(np.argsort(arch.opens_at)[:4]) == entries
