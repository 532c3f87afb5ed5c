"""PyTorch's networks against ours; what needs no PyTorch is tested without it."""

import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from urnet_jax import augment, checkpoint, optimizer, pretrained, resume, state, training
from urnet_jax import config as config_lib
from urnet_jax.architecture import Architecture, StageSpec
from urnet_jax.errors import UserError
from urnet_jax.resnet import ResNet

ROOT = pathlib.Path(__file__).resolve().parent.parent
WEIGHTS = ROOT.parent / "shared" / "weights" / "cifar10_resnet"
LOSSLESS = ROOT.parent / "shared" / "data" / "cifar10_lossless_subset.npz"
PUBLISHED = {
    20: ("resnet20-12fca82f.th", 932),
    32: ("resnet32-d509ac18.th", 944),
    44: ("resnet44-014dd654.th", 950),
    56: ("resnet56-4bfd9763.th", 943),
}
"""The file and how many of the 1,017 lossless test images PyTorch finds right with it."""

ARCHS = {
    "A": Architecture("cifar", 20, 5, image_size=8, width=4),
    "pool": Architecture("cifar", 8, 5, image_size=8, width=4, shortcut="pool", gated=False),
    "B": Architecture("cifar", 14, 5, image_size=8, width=4, shortcut="B", gated=False),
    "external": Architecture(
        "cifar", 14, 5, image_size=8, width=4, shortcut="B", gate_network="external"
    ),
    "basic": Architecture("imagenet", 18, 5, image_size=32, width=4, shortcut="B"),
    "bottleneck": Architecture(
        "imagenet", 50, 5, image_size=32, width=16, shortcut="B", gate_reduction=16
    ),
}


def variables(arch: Architecture, seed: int = 0) -> tuple[Any, Any]:
    """Params and batch_stats without a trivial number in them."""
    rng = np.random.default_rng(seed)
    abstract = nnx.eval_shape(lambda: ResNet(arch, rngs=nnx.Rngs(0)))
    _, *trees = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    params, batch_stats = (
        jax.tree.map(
            lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype),
            nnx.to_pure_dict(tree),
        )
        for tree in trees
    )
    return params, batch_stats


def exported(arch: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    return pretrained.export_state_dict(*variables(arch, seed), arch)


def logits(arch: Architecture, params: Any, batch_stats: Any, images: np.ndarray) -> np.ndarray:
    """Of the plain network, [B, K]."""
    graph, *_ = nnx.split(nnx.eval_shape(lambda: ResNet(arch, rngs=nnx.Rngs(0))))
    run = jax.jit(lambda x: state.apply(graph, params, batch_stats, x, jnp.ones(len(x)))[0])
    return np.concatenate([run(part) for part in np.array_split(images, -(-len(images) // 339))])


def assert_identical(tree: Any, other: Any) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype("float32")}


# ---- Against PyTorch ----


def torch_network(arch: Architecture, shortcut: str = "downsample", head: str = "fc") -> Any:
    """`arch` as a PyTorch module, under the names of torchvision or with those two in others."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def conv(inputs: int, outputs: int, size: int, stride: int) -> Any:
        return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, spec: StageSpec, entry: bool) -> None:
            super().__init__()
            mid, out = spec.mid_channels, spec.out_channels
            inputs, stride = (spec.in_channels, spec.stride) if entry else (out, 1)
            if spec.block == "basic":
                convs = [(inputs, mid, 3, stride), (mid, out, 3, 1)]
            else:
                convs = [(inputs, mid, 1, 1), (mid, mid, 3, stride), (mid, out, 1, 1)]
            self.num_convs, self.extra = len(convs), out - inputs
            for i, sizes in enumerate(convs, start=1):
                setattr(self, f"conv{i}", conv(*sizes))
                setattr(self, f"bn{i}", nn.BatchNorm2d(sizes[1]))
            self.pads = entry and spec.changes_shape and arch.shortcut == "A"
            if entry and spec.changes_shape and arch.shortcut == "B":
                layers = conv(inputs, out, 1, stride), nn.BatchNorm2d(out)
                setattr(self, shortcut, nn.Sequential(*layers))

        def forward(self, x: Any) -> Any:
            y = x
            for i in range(1, self.num_convs + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = y.relu() if i < self.num_convs else y
            if self.pads:
                around = (0, 0, 0, 0, self.extra // 2, self.extra // 2)
                x = nn.functional.pad(x[:, :, ::2, ::2], around)
            elif hasattr(self, shortcut):
                x = getattr(self, shortcut)(x)
            return (x + y).relu()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            size, stride = (3, 1) if arch.family == "cifar" else (7, 2)
            self.conv1 = conv(arch.image_channels, arch.width, size, stride)
            self.bn1 = nn.BatchNorm2d(arch.width)
            for n, spec in enumerate(arch.stages, start=1):
                blocks = [Block(spec, entry=i == 0) for i in range(spec.num_blocks)]
                setattr(self, f"layer{n}", nn.Sequential(*blocks))
            setattr(self, head, nn.Linear(arch.stages[-1].out_channels, arch.num_classes))

        def forward(self, x: Any) -> Any:
            x = self.bn1(self.conv1(x)).relu()
            x = nn.functional.max_pool2d(x, 3, 2, 1) if arch.family == "imagenet" else x
            for n in range(1, len(arch.stages) + 1):
                x = getattr(self, f"layer{n}")(x)
            return getattr(self, head)(x.mean((2, 3)))

    return Network().eval()


def randomize(network: Any) -> None:
    """Weights and statistics as far from trivial as trained ones."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 4:
            torch.nn.init.kaiming_normal_(tensor)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif tensor.ndim == 1 and name.endswith("weight"):
            tensor.uniform_(0.2, 0.6)
        else:
            tensor.normal_(0, 0.1)


def torch_logits(network: Any, images: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    with torch.inference_mode():
        return network(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))).numpy()


@pytest.fixture(scope="module")
def lossless() -> tuple[np.ndarray, np.ndarray]:
    """The 1,017 images, normalised, and their labels."""
    if not LOSSLESS.exists():
        pytest.skip(f"{LOSSLESS} is not here")
    with np.load(LOSSLESS) as data:
        images = augment.normalize(data["test_images"], *augment.normalization("cifar10"))
        return np.asarray(images), data["test_labels"]


@pytest.mark.slow
@pytest.mark.parametrize("depth", PUBLISHED)
def test_published_networks_classify_as_in_pytorch(depth, lossless, tmp_path):
    torch = pytest.importorskip("torch")
    name, right = PUBLISHED[depth]
    if not (WEIGHTS / name).exists():
        pytest.skip(f"{WEIGHTS / name} is not here")
    images, labels = lossless
    config = config_lib.load("cifar10_resnet20")
    fields = {"model.depth": depth, "model.gated": False, "init.from": str(WEIGHTS / name)}
    config.update_from_flattened_dict(fields)
    resume.check_init(config, "pretrain")
    params, batch_stats = pretrained.initial_variables(config)
    arch = config_lib.architecture(config)
    ours = logits(arch, params, batch_stats, images)
    assert int((ours.argmax(1) == labels).sum()) == right

    network = torch_network(arch, "shortcut", "linear")
    saved = torch.load(WEIGHTS / name, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({key.removeprefix("module."): saved[key] for key in saved})
    np.testing.assert_allclose(ours, torch_logits(network, images), rtol=0, atol=1e-4)

    # What is written again is what was read, but for the prefix; and neither way needs PyTorch.
    pretrained.write_state_dict(
        pretrained.export_state_dict(params, batch_stats, arch), tmp_path / "x.safetensors"
    )
    again = pretrained.read_state_dict(tmp_path / "x.safetensors")
    assert {f"module.{key}" for key in again} == set(saved)
    for key, array in again.items():
        np.testing.assert_array_equal(array, saved[f"module.{key}"].numpy())


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 50, 101])
def test_random_torchvision_networks_have_pytorchs_logits(depth, tmp_path):
    torch = pytest.importorskip("torch")
    arch = Architecture("imagenet", depth, 1000, 64, width=64, shortcut="B", gated=False)
    network = torch_network(arch)
    randomize(network)
    file = tmp_path / "network.pth"
    torch.save({"model": network.state_dict(), "epoch": 3}, file)
    params, batch_stats = pretrained.import_state_dict(
        pretrained.read_state_dict(file), arch, *variables(arch)
    )
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    expected = torch_logits(network, images)
    assert 0.1 < expected.std() < 10  # else 1e-4 would say little
    ours = logits(arch, params, batch_stats, images)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)

    pretrained.write_state_dict(
        pretrained.export_state_dict(params, batch_stats, arch), tmp_path / "again.pt"
    )
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    other = torch_network(arch)
    other.load_state_dict(again)
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_projections_of_a_cifar_network_have_pytorchs_logits():
    pytest.importorskip("torch")
    arch = ARCHS["B"]
    network = torch_network(arch, "shortcut", "linear")
    randomize(network)
    tensors = {f"module.{name}": tensor.numpy() for name, tensor in network.state_dict().items()}
    imported = pretrained.import_state_dict(tensors, arch, *variables(arch))
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    expected = torch_logits(network, images)
    np.testing.assert_allclose(logits(arch, *imported, images), expected, rtol=0, atol=1e-4)


def test_pytorchs_files_round_trip(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = exported(ARCHS["A"])
    for suffix in (".pt", ".pth", ".th"):
        pretrained.write_state_dict(tensors, tmp_path / f"x{suffix}")
        again = pretrained.read_state_dict(tmp_path / f"x{suffix}")
        assert again.keys() == tensors.keys()
        jax.tree.map(np.testing.assert_array_equal, again, tensors)
    half = {"state_dict": {"a": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)}}
    torch.save(half, tmp_path / "half.pt")
    assert pretrained.read_state_dict(tmp_path / "half.pt")["a"].tolist() == [1, 1]


def test_pytorchs_files_that_are_no_state_dicts(tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "text.th").write_text("no checkpoint")
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "epoch.pt")
    torch.save([1], tmp_path / "list.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for name, words in [
        ("text.th", "is not a checkpoint of tensors alone"),
        ("module.pt", "is not a checkpoint of tensors alone"),
        ("epoch.pt", "its entry 'epoch' is of type int, not a tensor"),
        ("list.pt", "its entry '(all)' is of type list, not a tensor"),
    ]:
        with pytest.raises(UserError, match=re.escape(words)) as error:
            pretrained.read_state_dict(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert "\n" not in str(error.value) and "torch.save(model.state_dict()" in str(error.value)


# ---- Without PyTorch ----


@pytest.mark.parametrize("name", ARCHS)
def test_export_and_import_is_the_identity(name, tmp_path):
    arch, file = ARCHS[name], tmp_path / "network.safetensors"
    params, batch_stats = variables(arch)
    pretrained.write_state_dict(pretrained.export_state_dict(params, batch_stats, arch), file)
    tensors = pretrained.read_state_dict(file)
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
    if layout == "half":
        return {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    if layout == "counts":
        counts = {n.replace("running_mean", "num_batches_tracked"): np.int64(7) for n in tensors}
        return {n: np.asarray(t) for n, t in counts.items() if "tracked" in n} | tensors
    pairs = [("linear.", "fc."), (".shortcut.", ".downsample.")]
    for ours, theirs in pairs if layout == "torchvision" else [(b, a) for a, b in pairs]:
        tensors = {name.replace(ours, theirs): tensor for name, tensor in tensors.items()}
    return tensors


@pytest.mark.parametrize("layout", ["module", "torchvision", "cifar", "counts", "half"])
@pytest.mark.parametrize("name", ["B", "basic"])
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


def without_gates(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensor for name, tensor in tensors.items() if "gate" not in name.split(".")}


@pytest.mark.parametrize("name", ["A", "external", "bottleneck"])
def test_a_gated_network_takes_plain_weights_and_keeps_its_gates(name):
    arch = ARCHS[name]
    params, batch_stats = variables(arch)
    own, own_stats = variables(arch, seed=1)
    imported, stats = pretrained.import_state_dict(
        without_gates(exported(arch)), arch, own, own_stats
    )
    gates, backbone = optimizer.split_trained(imported, "gates")
    assert_identical(gates, optimizer.split_trained(own, "gates")[0])
    assert_identical(backbone, optimizer.split_trained(params, "gates")[1])
    theirs, of_gates = (optimizer.split_trained(stats, "gates")[n] for n in (1, 0))
    assert_identical(theirs, optimizer.split_trained(batch_stats, "gates")[1])
    jax.tree.map(
        np.testing.assert_array_equal, of_gates, optimizer.split_trained(own_stats, "gates")[0]
    )
    assert_identical((own, own_stats), variables(arch, seed=1))


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
            "it lacks layer2.1.bn1.bias, layer2.1.bn1.running_mean, layer2.1.bn1.running_var and 1 "
            "more;",
        ),
        (
            whole | extra,
            "it holds layer2.1.se.weight, module.ema, unknown to that network",
        ),
        ({n: t for n, t in whole.items() if "linear" not in n}, "it lacks fc.bias, fc.weight"),
        (
            few | extra,
            "and 1 more and holds layer2.1.se.weight, module.ema, unknown to that network",
        ),
        (
            whole | {"layer1.0.bn9.num_batches_tracked": np.ones(1)},
            "it holds layer1.0.bn9.num_batches_tracked, unknown",
        ),
    ]:
        with pytest.raises(UserError, match=re.escape(words)) as error:
            pretrained.check(tensors, PLAIN, "x.th")
        assert str(error.value).startswith("x.th is not a whole plain ResNet-14 (cifar, width 16)")
        assert str(error.value).endswith("; name a checkpoint of that network and nothing else.")


def test_gates_of_another_kind_are_named():
    external = Architecture("cifar", 14, 10, image_size=8, gate_network="external")
    with pytest.raises(UserError, match="gate_network external, not block"):
        pretrained.import_state_dict(exported(GATED), external, *variables(external))
    with pytest.raises(UserError, match="gate_network block, not external"):
        pretrained.import_state_dict(exported(external), GATED, *variables(GATED))


def test_some_gates_are_an_error():
    tensors = exported(GATED)
    dropped = [name for name in tensors if name.startswith("layer3.1.gate.")]
    assert len(dropped) == 4
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    with pytest.raises(UserError, match=r"it lacks layer3\.1\.gate\.fc1\.bias, .* and 1 more; "):
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


def test_other_kinds_of_network_are_named():
    imagenet, whole = exported(ARCHS["basic"]), exported(PLAIN)
    small_stem = imagenet | {"conv1.weight": np.ones((4, 3, 3, 3), np.float32)}
    short = {name: tensor for name, tensor in whole.items() if "layer3.1" not in name}
    for tensors, words in [
        ({}, "holds no ResNet by the names of torchvision, timm or the CIFAR ResNets"),
        ({"features.0.weight": np.ones(1)}, "and so on, and it holds features.0.weight."),
        (whole | {"conv1.weight": np.ones(3)}, "holds no ResNet by the names"),
        (small_stem, "holds 2, 2, 2, 2 basic blocks behind a convolution of 3 x 3, which is neith"),
        (short, "holds 2, 2, 1 basic blocks behind a convolution of 3 x 3, which is neither"),
    ]:
        with pytest.raises(UserError, match=re.escape(words)):
            pretrained.check(tensors, PLAIN, "x.th")


# ---- Files ----


def test_files_that_cannot_be_read_are_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "some.th").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    for name, words in [
        ("gone.th", r"gone\.th cannot be read \(No such file or directory\); name a PyTorch che"),
        ("folder.pt", r"folder\.pt cannot be read \(Is a directory\)"),
        ("text.safetensors", r"text\.safetensors is not a checkpoint of tensors alone \(.*\); wri"),
        (
            "some.th",
            r"some\.th is a file of PyTorch, .*`pip install '\.\[torch\]'`, or use a \.saf",
        ),
    ]:
        with pytest.raises(UserError, match=words) as error:
            pretrained.read_state_dict(tmp_path / name)
        assert "\n" not in str(error.value)


def test_files_that_cannot_be_written_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name, words in [
        ("x.npz", r"x\.npz is no name for a checkpoint; expected .* \.safetensors, \.pt, \.pth or"),
        ("x.pt", r"x\.pt is a file of PyTorch, which is not installed"),
        ("gone/x.safetensors", r"cannot be written \(No such file or directory\); name another"),
    ]:
        with pytest.raises(UserError, match=words):
            pretrained.write_state_dict({"a": np.ones(2)}, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_plain_safetensors(tmp_path):
    tensors = exported(ARCHS["A"])
    strided = {name: np.asfortranarray(tensor) for name, tensor in tensors.items()}
    pretrained.write_state_dict(strided, tmp_path / "x.safetensors")
    again = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert again.keys() == tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, again, tensors)


# ---- In a run ----


@pytest.mark.parametrize("run", ["cifar10_resnet20/run", "cifar10_resnet20/plain/run"])
def test_runs_from_before_there_was_a_section_init_still_load(run, tmp_path):
    meta, params, batch_stats = checkpoint.load_for_evaluation(ROOT / "results" / run)
    assert meta.config.init["from"] == ""
    arch = config_lib.architecture(meta.config)
    pretrained.export_workdir(ROOT / "results" / run, tmp_path / "x.safetensors", "newest")
    tensors = pretrained.read_state_dict(tmp_path / "x.safetensors")
    own = variables(arch)
    assert_identical(pretrained.import_state_dict(tensors, arch, *own), (params, batch_stats))


def test_init_is_refused_before_anything_is_made(tiny, tmp_path):
    def refusal(fields: dict[str, Any]) -> str:
        with pytest.raises(UserError) as error:
            training.train_and_evaluate(tiny(fields), tmp_path / "new")
        assert not (tmp_path / "new").exists()
        return str(error.value)

    file = tmp_path / "other.safetensors"
    assert refusal({"init.from": str(file)}).startswith(f"{file} cannot be read")
    arch = config_lib.architecture(tiny({"model.depth": 14}))
    pretrained.write_state_dict(exported(arch), file)
    assert "(depth 8, not 14)" in refusal({"init.from": str(file)})
    assert refusal({"init.from": str(file), "pretrain.init_from": "runs/x"}) == (
        f"init.from is {file} and pretrain.init_from runs/x: a run begins from one of them; leave "
        "the other empty."
    )


def export(*arguments: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "urnet_jax.pretrained", *arguments],
        cwd=cwd, env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_run_begins_from_what_another_exported(finished, start, tiny_flags, tmp_path):
    done = export(f"--workdir={finished}", "--output=whole.safetensors", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "gated ResNet-8 (cifar, width 16, shortcut A) for 10 classes at 8 px, step 29 (joint): "
        "49 tensors",
        "whole.safetensors",
    ]
    _, params, batch_stats = checkpoint.load_for_evaluation(finished)
    whole = safetensors.numpy.load_file(tmp_path / "whole.safetensors")
    plain = without_gates(whole)
    assert len(plain) == 37
    safetensors.numpy.save_file(plain, tmp_path / "plain.safetensors")

    flags = [*tiny_flags, "--config.pretrain.epochs=0", "--config.joint.epochs=0"]
    flags += ["--config.gates.learning_rate=0", "--workdir=run"]
    command = "train.py", *flags, "--config.init.from=plain.safetensors"
    with start(*command, cwd=tmp_path) as process:
        printed, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert "It begins with the weights of plain.safetensors." in printed
    meta, begun, stats = checkpoint.load_for_evaluation(tmp_path / "run")
    assert (meta.phase, meta.step, meta.config.init["from"]) == ("gates", 7, "plain.safetensors")
    gates, backbone = optimizer.split_trained(begun, "gates")
    assert_identical(backbone, optimizer.split_trained(params, "gates")[1])
    assert_identical(stats, batch_stats)
    own = state.init_variables(meta.config)[0]
    assert_identical(gates, optimizer.split_trained(own, "gates")[0])

    # A run that has begun goes on without the file.
    (tmp_path / "plain.safetensors").unlink()
    with start(*command, cwd=tmp_path) as process:
        printed, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert "Phase gates is finished." in printed

    config = meta.config.copy_and_resolve_references()
    config.init["from"] = str(tmp_path / "whole.safetensors")
    assert_identical(pretrained.initial_variables(config), (params, batch_stats))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--workdir is missing; name the run's folder, as --workdir=runs/mine."),
        (["--workdir=run"], "--output is missing; name a file, as --output=mine.safetensors."),
        (["--workdir=run", "--output=x.safetensors", "--step=last"],
         "--step is 'last'; expected newest, best or a step's number."),
        (["--workdir=run", "--output=x.npz"],
         "x.npz is no name for a checkpoint; expected one that ends in .safetensors, .pt, .pth or "
         ".th."),
        (["--workdir=run", "--output=x.safetensors", "--step=3"],
         "The workdir run holds no checkpoint; train there first: python train.py --workdir=run."),
    ],
)  # fmt: skip
def test_export_of_what_cannot_be_is_one_sentence(arguments, sentence, tmp_path):
    done = export(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {sentence}\n"
    assert not list(tmp_path.iterdir())


def test_export_says_how_it_is_used(tmp_path):
    done = export("--help", cwd=tmp_path)
    assert done.returncode == 0 and "--output" in done.stdout
