"""State dicts that are not of the network which the config asks for."""

import re

import numpy as np
import pytest

from helpers.pretrained_networks import ARCHS, exported, variables
from urnet_jax.errors import UserError
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.channels.architecture import ChannelGated
from urnet_jax.runs import pretrained

GATED = Architecture("cifar", 14, 10, image_size=8)
PLAIN = Architecture("cifar", 14, 10, image_size=8, gated=False)
MISFITS = {
    "depth": (
        Architecture("cifar", 20, 10, image_size=8),
        "a plain ResNet-14 (cifar, width 16) for 10 classes, and the config asks for another "
        "network (depth 20, not 14): ask for what it holds, or name another file.",
    ),
    "width and classes": (
        Architecture("cifar", 14, 100, image_size=8, width=8),
        "another network (width 8, not 16, num_classes 100, not 10)",
    ),
    "shortcut": (Architecture("cifar", 14, 10, 8, shortcut="B"), "network (shortcut B, not A)"),
    "channels": (Architecture("cifar", 14, 10, 8, 1), "network (image_channels 1, not 3)"),
    "family": (
        Architecture("imagenet", 18, 10, image_size=32, width=16, shortcut="B"),
        "(family imagenet, not cifar, depth 18, not 14, shortcut B, not A)",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_another_network_is_one_sentence(case):
    arch, words = MISFITS[case]
    tensors = exported(PLAIN)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        pretrained.import_state_dict(tensors, arch, *variables(arch), source="x.th")
    assert str(error.value).startswith("x.th holds a plain ResNet-14 (cifar, width 16) for 10 ")


HEAD = "it lacks fc.bias, fc.weight; name"


def test_a_plain_network_refuses_gates():
    with pytest.raises(UserError, match=re.escape("holds a gated ResNet-14 (cifar, ")) as error:
        pretrained.check(exported(GATED), PLAIN, "x.th")
    assert "(gated False, not True)" in str(error.value)
    pretrained.check(exported(PLAIN), GATED, "x.th")


def test_every_tensor_is_accounted_for():
    whole = exported(PLAIN)
    few = {name: tensor for name, tensor in whole.items() if not name.startswith("layer2.1.bn1")}
    extra = {"layer2.1.se.weight": np.ones(1), "module.ema": np.ones(1)}
    for tensors, words in [
        (
            few,
            "it lacks layer2.1.bn1.bias, layer2.1.bn1.running_mean, layer2.1.bn1.running_var, "
            "layer2.1.bn1.weight;",
        ),
        (
            whole | extra,
            "it holds layer2.1.se.weight, module.ema, unknown to that network",
        ),
        ({n: t for n, t in whole.items() if "linear" not in n}, HEAD),
        (
            {n: t for n, t in whole.items() if not n.endswith(("running_mean", "running_var"))},
            "it lacks bn1.running_mean, bn1.running_var, layer1.0.bn1.running_mean, "
            "layer1.0.bn1.running_var, layer1.0.bn2.running_mean and 21 more; name",
        ),
        (
            few | extra,
            "layer2.1.bn1.weight and holds layer2.1.se.weight, module.ema, unknown to that network",
        ),
        (
            whole | {"layer1.0.bn9.num_batches_tracked": np.ones(1)},
            "it holds layer1.0.bn9.num_batches_tracked, unknown",
        ),
    ]:
        with pytest.raises(UserError, match=re.escape(words)) as error:
            pretrained.check(tensors, PLAIN, "x.th")
        assert str(error.value).startswith("x.th is not a whole plain ResNet-14 (cifar, width 16)")
        assert "; name a checkpoint of that network and nothing else" in str(error.value)
        assert ("set init.head to 'new'" in str(error.value)) == (words == HEAD)


def test_gates_of_another_kind_are_named():
    external = Architecture("cifar", 14, 10, image_size=8, gate_network="external")
    with pytest.raises(UserError, match="gate_network external, not block"):
        pretrained.import_state_dict(exported(GATED), external, *variables(external))
    with pytest.raises(UserError, match="gate_network block, not external"):
        pretrained.import_state_dict(exported(external), GATED, *variables(GATED))


def test_channel_gates_are_named():
    channels = ChannelGated("cifar", 14, 10, image_size=8, gate_group=8)
    with pytest.raises(UserError, match="holds a channel-gated ResNet-14 .*block, not channels"):
        pretrained.check(exported(channels), GATED, "x.th")
    with pytest.raises(UserError, match="gate_network channels, not block"):
        pretrained.check(exported(GATED), channels, "x.th")
    other = ChannelGated("cifar", 14, 10, image_size=8, gate_group=4, gate_scale=False)
    with pytest.raises(UserError, match="gate_group 4, not 8, gate_scale False, not True"):
        pretrained.check(exported(channels), other, "x.th")
    pretrained.check(exported(PLAIN), channels, "x.th")


def test_some_gates_are_an_error():
    tensors = exported(GATED)
    dropped = [name for name in tensors if name.startswith("layer3.1.gate.")]
    assert len(dropped) == 4
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    with pytest.raises(UserError, match=", ".join(["it lacks .*"] + 3 * [r"layer3\.1\.gate.*"])):
        pretrained.check(tensors, GATED, "x.th")


def test_shapes_and_numbers_are_those_of_the_network():
    whole = exported(PLAIN)
    for name, tensor, words in [
        (
            "layer2.0.conv2.weight",
            np.ones((32, 16, 3, 3), np.float32),
            "as float32 of shape (32, 16, 3, 3); expected floating-point numbers of shape "
            "(32, 32, 3, 3): name",
        ),
        ("bn1.bias", np.ones(16, np.int8), "as int8 of shape (16,); expected floating-point"),
        ("bn1.bias", np.ones((), np.float32), "as float32 of shape (); expected"),
    ]:
        with pytest.raises(UserError, match=re.escape(f"x.th holds {name} {words}")):
            pretrained.check(whole | {name: tensor}, PLAIN, "x.th")
    with pytest.raises(UserError, match=r"holds both linear\.bias and module\.fc\.bias; drop one"):
        pretrained.check(whole | {"module.fc.bias": np.ones(10)}, PLAIN, "x.th")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_numbers_that_are_not_finite_are_refused(number, dtype):
    whole = {name: tensor.astype(dtype) for name, tensor in exported(GATED).items()}
    whole["layer3.1.gate.fc2.bias"][0] = number
    whole["layer2.0.conv2.weight"][0, 0, 0, 0] = number
    with pytest.raises(UserError) as error:
        pretrained.import_state_dict(whole, GATED, *variables(GATED), source="x.th")
    assert str(error.value) == (
        f"x.th holds NaN or infinite numbers in 2 of {len(whole)} tensors, the first of them "
        "layer2.0.conv2.weight: name a checkpoint from before training diverged."
    )


def test_other_kinds_of_network_are_named():
    imagenet, whole = exported(ARCHS["basic"]), exported(PLAIN)
    small_stem = imagenet | {"conv1.weight": np.ones((4, 3, 3, 3), np.float32)}
    short = {name: tensor for name, tensor in whole.items() if "layer3.1" not in name}
    for tensors, words in [
        ({}, "x.th holds no tensors; name a file of weights."),
        (
            {"features.0.weight": np.ones(1)},
            "holds no ResNet by the names of torchvision, timm, Hugging Face or the CIFAR ResNets, "
            "but a network of `features` (VGG, DenseNet, MobileNet): expected conv1.weight, ",
        ),
        ({"conv1.0.weight": np.ones(1)}, "but one with a deep stem, of several convolutions"),
        ({"vit.embeddings.cls_token": np.ones(1)}, "but a vision transformer: expected"),
        ({"anything": np.ones(1)}, "or the CIFAR ResNets: expected conv1.weight"),
        (
            {f"features.{k}.weight": np.ones(1) for k in (3, 5, 0, 9, 7, 1, 8)},
            "and so on, and it holds features.0.weight, features.1.weight, features.3.weight, "
            "features.5.weight, features.7.weight and 2 more; name another file.",
        ),
        (whole | {"conv1.weight": np.ones(3)}, "holds no ResNet by the names"),
        (small_stem, "holds 2, 2, 2, 2 basic blocks behind a convolution of 3 x 3, which is neith"),
        (short, "holds 2, 2, 1 basic blocks behind a convolution of 3 x 3, which is neither"),
    ]:
        with pytest.raises(UserError, match=re.escape(words)):
            pretrained.check(tensors, PLAIN, "x.th")
