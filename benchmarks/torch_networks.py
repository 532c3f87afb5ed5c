"""The same residual networks in PyTorch, to compare with: dense, and with blocks dropped.

Blocks are dropped as published PyTorch implementations of dynamic networks do it: in a batch of one
image a block that is off is not computed; in a larger batch a block is computed for every image and
masked, unless it is off for all of them. Channels that gates switch off are computed and masked,
also as published code does it.
"""

from typing import Any

from urnet_jax.errors import UserError
from urnet_jax.nets.residual import Residual, StageSpec

try:
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.nn import functional as F  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise UserError(
        "PyTorch, which the benchmarks compare with, is not installed: install the extra with "
        "`pip install '.[torch]'`, or leave the comparison out with --torch=False."
    ) from error


def _conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class Block(nn.Module):
    """A residual block; see `urnet_jax.nets.blocks.Block`."""

    def __init__(self, arch: Residual, spec: StageSpec, *, entry: bool) -> None:
        super().__init__()
        inputs = spec.in_channels if entry else spec.out_channels
        self.stride = spec.stride if entry else 1
        self.extra = spec.out_channels - inputs
        mid, out = spec.mid_channels, spec.out_channels
        if spec.block == "basic":
            convs = [(inputs, mid, 3, self.stride), (mid, out, 3, 1)]
        else:
            convs = [(inputs, mid, 1, 1), (mid, mid, 3, self.stride), (mid, out, 1, 1)]
        layers: list[nn.Module] = []
        for conv in convs:
            layers += [_conv(*conv), nn.BatchNorm2d(conv[1]), nn.ReLU(inplace=True)]
        self.residual = nn.Sequential(*layers[:-1])
        self.shortcut = arch.shortcut if entry and spec.changes_shape else None
        if self.shortcut == "B":
            self.downsample = nn.Sequential(_conv(inputs, out, 1, self.stride), nn.BatchNorm2d(out))

    def shortcut_path(self, x: Any) -> Any:
        """X, or X brought to the block's output shape."""
        if self.shortcut is None:
            return x
        if self.shortcut == "B":
            return self.downsample(x)
        x = (
            F.avg_pool2d(x, 2)
            if self.shortcut == "pool"
            else x[:, :, :: self.stride, :: self.stride]
        )
        return F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))

    def forward(self, x: Any) -> Any:
        return F.relu(self.shortcut_path(x) + self.residual(x))

    def masked(self, x: Any, mask: Any) -> Any:
        """F(X) of every image, weighed by the image's entry of `mask`."""
        return F.relu(self.shortcut_path(x) + mask.view(-1, 1, 1, 1) * self.residual(x))

    def masked_inside(self, x: Any, gates: Any) -> Any:
        """The block, whose channels after each ReLU are weighed by their groups' gates [B, g]."""
        y, layers = x, (len(self.residual) - 2) // 3
        for i, layer in enumerate(self.residual):
            y = layer(y)
            if i % 3 == 2:
                own = gates.chunk(layers, dim=1)[i // 3]
                y = y * own.repeat_interleave(y.shape[1] // own.shape[1], dim=1)[:, :, None, None]
        return F.relu(self.shortcut_path(x) + y)

    def skipped(self, x: Any) -> Any:
        """The block without F(X)."""
        return x if self.shortcut is None else F.relu(self.shortcut_path(x))


class ResNet(nn.Module):
    """A plain residual network, `arch` without its gates; images are NCHW."""

    def __init__(self, arch: Residual) -> None:
        super().__init__()
        size, stride = (3, 1) if arch.family == "cifar" else (7, 2)
        stem = [_conv(arch.image_channels, arch.width, size, stride), nn.BatchNorm2d(arch.width)]
        stem.append(nn.ReLU(inplace=True))
        if arch.family == "imagenet":
            stem.append(nn.MaxPool2d(3, 2, padding=1))
        self.stem = nn.Sequential(*stem)
        self.blocks: Any = nn.ModuleList(
            Block(arch, spec, entry=i == 0) for spec in arch.stages for i in range(spec.num_blocks)
        )
        self.gates = [arch.gates_of_block(s) for s in arch.stages for _ in range(s.num_blocks)]
        self.fc = nn.Linear(arch.stages[-1].out_channels, arch.num_classes)

    def forward(self, images: Any) -> Any:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))

    def dropping(self, images: Any, policy: Any) -> Any:
        """Logits with blocks dropped.

        Args:
          images: the batch.
          policy: 1 where an image uses a block, else 0, [B, N], in the network's dtype and on its
            device. It is known before the first block, so one transfer to the host tells which
            blocks are off for the whole batch.
        """
        x = self.stem(images)
        used = policy.any(dim=0).tolist()
        for i, block in enumerate(self.blocks):
            if not used[i]:
                x = block.skipped(x)
            elif len(policy) == 1:
                x = block(x)
            else:
                x = block.masked(x, policy[:, i])
        return self.fc(x.mean((2, 3)))

    def masking(self, images: Any, policy: Any) -> Any:
        """Logits with channels masked.

        Args:
          images: the batch.
          policy: 1 where an image uses a group of channels, else 0, [B, G] in network order.
        """
        x, start = self.stem(images), 0
        for block, gates in zip(self.blocks, self.gates, strict=True):
            x = block.masked_inside(x, policy[:, start : start + gates])
            start += gates
        return self.fc(x.mean((2, 3)))


def build(arch: Residual, device: str, dtype: str = "float32") -> ResNet:
    """The network on `device` (`cpu`, `cuda`) in `dtype`, its weights channels last."""
    torch.manual_seed(0)
    network: Any = ResNet(arch).to(device=device, dtype=getattr(torch, dtype))
    return network.to(memory_format=torch.channels_last)


def to_torch(images: Any, device: str, dtype: str = "float32") -> Any:
    """NHWC images of NumPy as an NCHW tensor that lies channels last."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).to(device, getattr(torch, dtype))
    return tensor.contiguous(memory_format=torch.channels_last)


def device_name(platform: str) -> str:
    """PyTorch's device for JAX's `platform`.

    Raises:
      UserError: PyTorch has no such device.
    """
    if platform == "cpu":
        return "cpu"
    if platform in ("gpu", "cuda", "rocm") and torch.cuda.is_available():
        return "cuda"
    raise UserError(
        f"JAX runs on {platform} and PyTorch {torch.__version__} finds no such device: install one "
        "that does, or leave the comparison out with --torch=False."
    )
