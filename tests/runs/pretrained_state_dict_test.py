"""PyTorch's names and axes, and which of a network's variables they fill."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.pretrained_networks import ARCHS, assert_identical, exported, variables, without_gates
from helpers.variables import split_gates
from urnet_jax.errors import UserError
from urnet_jax.nets.architecture import Architecture
from urnet_jax.runs import pretrained, torch_files
from urnet_jax.runs.hugging_face_names import from_torchvision


@pytest.mark.parametrize("name", ARCHS)
def test_export_and_import_is_the_identity(name, tmp_path):
    arch, file = ARCHS[name], tmp_path / "network.safetensors"
    params, batch_stats = variables(arch)
    torch_files.write_state_dict(pretrained.export_state_dict(params, batch_stats, arch), file)
    tensors = torch_files.read_state_dict(file)
    again = pretrained.import_state_dict(tensors, arch, *variables(arch, seed=1))
    assert_identical(again, (params, batch_stats))
    size = sum(leaf.size for leaf in jax.tree.leaves((params, batch_stats)))
    assert size == sum(tensor.size for tensor in tensors.values())


def test_names_and_axes_are_pytorchs():
    norm = {"weight", "bias", "running_mean", "running_var"}
    names = {"conv1.weight", *(f"bn1.{leaf}" for leaf in norm)}
    for block in ("layer1.0", "layer2.0", "layer3.0"):
        names |= {f"{block}.conv{i}.weight" for i in (1, 2)}
        names |= {f"{block}.bn{i}.{leaf}" for i in (1, 2) for leaf in norm}
    arch = Architecture("cifar", 8, 5, image_size=8, width=4, gated=False)
    tensors = exported(arch)
    assert set(tensors) == names | {"linear.weight", "linear.bias"}
    assert tensors["conv1.weight"].shape == (4, 3, 3, 3)
    assert tensors["layer2.0.conv1.weight"].shape == (8, 4, 3, 3)
    assert tensors["linear.weight"].shape == (5, 16)
    params, stats = variables(arch)
    kernel = params["stage2"]["entry"]["conv1"]["kernel"]
    assert tensors["layer2.0.conv1.weight"][7, 3, 0, 2] == kernel[0, 2, 3, 7]
    assert tensors["linear.weight"][4, 15] == params["fc"]["kernel"][15, 4]
    assert tensors["bn1.weight"][1] == params["bn1"]["scale"][1]
    assert tensors["bn1.running_var"][1] == stats["bn1"]["var"][1]

    gated, params = exported(ARCHS["A"]), variables(ARCHS["A"])[0]["stage3"]["body"]
    assert gated["layer3.2.conv2.weight"][15, 3, 0, 2] == params["conv2"]["kernel"][1, 0, 2, 3, 15]
    assert gated["layer3.2.gate.fc1.weight"].shape == (8, 32)
    assert gated["layer3.2.gate.fc1.weight"][7, 31] == params["gate"]["fc1"]["kernel"][1, 31, 7]
    bottleneck = exported(ARCHS["bottleneck"])
    assert bottleneck["layer1.0.downsample.0.weight"].shape == (64, 16, 1, 1)
    assert {"layer4.2.conv3.weight", "layer1.0.downsample.1.running_mean"} <= set(bottleneck)
    assert {"fc.weight", "fc.bias"} <= set(bottleneck)
    assert "layer3.0.shortcut.0.weight" in exported(ARCHS["B"])


def renamed(tensors: dict[str, np.ndarray], layout: str) -> dict[str, np.ndarray]:
    """As other networks call them."""
    if layout == "module":
        return {f"module.{name}": tensor for name, tensor in tensors.items()}
    if layout == "huggingface":
        return {from_torchvision(name): tensor for name, tensor in tensors.items()}
    if layout == "backbone":  # ResNetModel's, which has no head
        names = {name: from_torchvision(name).removeprefix("resnet.") for name in tensors}
        return {own: tensors[name] for name, own in names.items()}
    if layout == "half":
        return {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    if layout == "counts":
        counts = {n.replace("running_mean", "num_batches_tracked"): np.int64(7) for n in tensors}
        return {n: np.asarray(t) for n, t in counts.items() if "tracked" in n} | tensors
    pairs = [("linear.", "fc."), (".shortcut.", ".downsample.")]
    for ours, theirs in pairs if layout == "torchvision" else [(b, a) for a, b in pairs]:
        tensors = {name.replace(ours, theirs): tensor for name, tensor in tensors.items()}
    return tensors


LAYOUTS = ["module", "torchvision", "cifar", "counts", "half", "huggingface", "backbone"]


@pytest.mark.parametrize(
    ("name", "layout"),
    [("basic", layout) for layout in LAYOUTS] + [("B", layout) for layout in LAYOUTS[:5]],
)
def test_every_layout_of_names_is_known(name, layout):
    arch = ARCHS[name]
    params, batch_stats = variables(arch)
    tensors = renamed(pretrained.export_state_dict(params, batch_stats, arch), layout)
    imported = pretrained.import_state_dict(tensors, arch, *variables(arch, seed=1))
    if layout == "half":
        params, batch_stats = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), (params, batch_stats)
        )
    assert_identical(imported, (params, batch_stats))


@pytest.mark.parametrize("name", ["basic", "bottleneck"])
def test_hugging_faces_names_are_written_and_read(name):
    """Of gates too. The names themselves are compared with theirs in pretrained_torch_test."""
    arch = ARCHS[name]
    params, batch_stats = variables(arch)
    tensors = pretrained.export_state_dict(params, batch_stats, arch, "huggingface")
    assert "resnet.encoder.stages.1.layers.0.shortcut.normalization.running_var" in tensors
    assert "resnet.encoder.stages.3.layers.1.gate.fc2.bias" in tensors
    assert {name.split(".")[0] for name in tensors} == {"resnet", "classifier"}
    found = pretrained.import_state_dict(tensors, arch, *variables(arch, seed=1))
    assert_identical(found, (params, batch_stats))


@pytest.mark.parametrize("name", ["A", "bottleneck"])
def test_a_new_head_is_the_networks_own(name):
    """For three classes, of weights that are for five."""
    arch = ARCHS[name]
    own_arch = dataclasses.replace(arch, num_classes=3)
    params, batch_stats = variables(arch)
    own, own_stats = variables(own_arch, seed=1)
    imported, stats = pretrained.import_state_dict(
        exported(arch), own_arch, own, own_stats, new_head=True
    )
    assert imported["fc"]["kernel"].shape[1] == 3
    assert_identical(imported["fc"], own["fc"])
    kept = {key: tree for key, tree in imported.items() if key != "fc"}
    assert_identical(kept, {key: tree for key, tree in params.items() if key != "fc"})
    assert_identical(stats, batch_stats)
    with pytest.raises(UserError, match="num_classes 3, not 5"):
        pretrained.check(exported(arch), own_arch, "x.th")
    # A backbone alone is enough, and anything else must be whole all the same.
    head = ("fc.", "linear.")
    backbone = {key: x for key, x in exported(arch).items() if not key.startswith(head)}
    pretrained.check(backbone, own_arch, "x.th", new_head=True)
    with pytest.raises(UserError, match="lacks fc.bias, fc.weight"):
        pretrained.check(backbone, arch, "x.th")
    backbone.pop("bn1.weight")
    with pytest.raises(UserError, match="lacks bn1.weight; name"):
        pretrained.check(backbone, own_arch, "x.th", new_head=True)


@pytest.mark.parametrize("name", ["A", "external", "bottleneck", "channels", "bottleneck channels"])
def test_a_gated_network_takes_plain_weights_and_keeps_its_gates(name):
    arch = ARCHS[name]
    params, batch_stats = variables(arch)
    own, own_stats = variables(arch, seed=1)
    imported, stats = pretrained.import_state_dict(
        without_gates(exported(arch)), arch, own, own_stats
    )
    gates, backbone = split_gates(imported)
    assert_identical(gates, split_gates(own)[0])
    assert_identical(backbone, split_gates(params)[1])
    theirs, of_gates = (split_gates(stats)[n] for n in (1, 0))
    assert_identical(theirs, split_gates(batch_stats)[1])
    jax.tree.map(np.testing.assert_array_equal, of_gates, split_gates(own_stats)[0])
    assert_identical((own, own_stats), variables(arch, seed=1))
