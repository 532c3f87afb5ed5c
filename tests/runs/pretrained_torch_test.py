"""PyTorch's networks against ours; what needs no PyTorch is tested without it."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.pretrained_networks import ARCHS, variables
from helpers.variables import apply
from urnet_jax import config as config_lib
from urnet_jax.data import augment
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.residual import IMAGENET_BLOCKS, StageSpec
from urnet_jax.nets.resnet import ResNet
from urnet_jax.runs import pretrained, torch_files
from urnet_jax.train import resume

ROOT = pathlib.Path(__file__).resolve().parents[2]
WEIGHTS = ROOT.parent / "shared" / "weights" / "cifar10_resnet"
LOSSLESS = ROOT.parent / "shared" / "data" / "cifar10_lossless_subset.npz"
PUBLISHED = {
    20: ("resnet20-12fca82f.th", 932),
    32: ("resnet32-d509ac18.th", 944),
    44: ("resnet44-014dd654.th", 950),
    56: ("resnet56-4bfd9763.th", 943),
}
"""The file and how many of the 1,017 lossless test images PyTorch finds right with it."""


def logits(arch: Architecture, params: Any, batch_stats: Any, images: np.ndarray) -> np.ndarray:
    """Of the plain network, [B, K]."""
    graph, *_ = nnx.split(nnx.eval_shape(lambda: ResNet(arch, rngs=nnx.Rngs(0))))
    run = jax.jit(lambda x: apply(graph, params, batch_stats, x, jnp.ones(len(x)))[0])
    return np.concatenate([run(part) for part in np.array_split(images, -(-len(images) // 339))])


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
    torch_files.write_state_dict(
        pretrained.export_state_dict(params, batch_stats, arch), tmp_path / "x.safetensors"
    )
    again = torch_files.read_state_dict(tmp_path / "x.safetensors")
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
        torch_files.read_state_dict(file), arch, *variables(arch)
    )
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    expected = torch_logits(network, images)
    assert 0.1 < expected.std() < 10  # else 1e-4 would say little
    ours = logits(arch, params, batch_stats, images)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)

    torch_files.write_state_dict(
        pretrained.export_state_dict(params, batch_stats, arch), tmp_path / "again.pt"
    )
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    other = torch_network(arch)
    other.load_state_dict(again)
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 50])
def test_a_random_network_of_hugging_face_has_its_logits_and_is_written_back(depth, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind, blocks = IMAGENET_BLOCKS[depth]
    expansion = 4 if kind == "bottleneck" else 1
    config = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64 * 2**i * expansion for i in range(4)],
        depths=list(blocks), layer_type=kind, num_labels=7,
    )  # fmt: skip
    network = transformers.ResNetForImageClassification(config).eval()
    randomize(network)
    network.save_pretrained(tmp_path / "saved")
    arch = Architecture("imagenet", depth, 7, 64, width=64, shortcut="B", gated=False)
    params, batch_stats = pretrained.import_state_dict(
        torch_files.read_state_dict(tmp_path / "saved"), arch, *variables(arch)
    )
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
    assert 0.1 < expected.std() < 10  # else 1e-4 would say little
    np.testing.assert_allclose(
        logits(arch, params, batch_stats, images), expected, rtol=0, atol=1e-4
    )
    written = pretrained.export_state_dict(params, batch_stats, arch, "huggingface")
    other = transformers.ResNetForImageClassification(config)
    missing = other.load_state_dict(
        {name: torch.tensor(array) for name, array in written.items()}, strict=False
    )
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, other.state_dict()[name]), name
