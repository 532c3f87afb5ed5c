"""The heads of networks for dense prediction (PSPNet, Zhao et al. 2017, 1612.01105)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from urnet_jax.nets.contract import Features
from urnet_jax.nets.cost import Convolution
from urnet_jax.nets.dense.architecture import BINS, Dense
from urnet_jax.nets.layers import conv, norm, running
from urnet_jax.nets.mode import Build, Mode


class Fused(nnx.Module):
    """A convolution, BatchNorm and ReLU."""

    def __init__(self, spec: Convolution, build: Build, rngs: nnx.Rngs) -> None:
        self.conv, self.bn = conv(spec, build, rngs), norm(spec.outputs, build, rngs)

    def __call__(self, x: Features, mode: Mode) -> Features:
        return nnx.relu(self.bn(self.conv(x), running(mode)))


class Classifier(nnx.Module):
    """The last layer, a 1x1 convolution, at every position, and from there to every pixel."""

    def __init__(self, spec: Convolution, build: Build, rngs: nnx.Rngs) -> None:
        self.fc = nnx.Linear(spec.inputs, spec.outputs, precision=build.precision, rngs=rngs)

    def __call__(self, x: Features, size: tuple[int, ...]) -> Float[Array, "B H W K"]:
        """Logits of each pixel of images of this height and width, float32."""
        return resize(self.fc(x.astype(jnp.float32)), size)


class PyramidHead(nnx.Module):
    """Pools to grids of several sizes, each to fewer channels, and predicts from all of them."""

    def __init__(self, arch: Dense, build: Build, rngs: nnx.Rngs) -> None:
        for cells in BINS:
            setattr(self, f"pool{cells}", Fused(arch.reduction, build, rngs))
        self.fusion = Fused(arch.fusion, build, rngs)
        self.classifier = Classifier(arch.classifier, build, rngs)

    def __call__(self, x: Features, size: tuple[int, ...], mode: Mode) -> Float[Array, "B H W K"]:
        """Logits of each pixel of images of this height and width."""
        seen = [x]
        for cells in BINS:
            of_grid = getattr(self, f"pool{cells}")(pool_to_grid(x, cells).astype(x.dtype), mode)
            seen.append(resize(of_grid, x.shape[1:3]))
        return self.classifier(self.fusion(jnp.concatenate(seen, axis=-1), mode), size)


class AuxiliaryHead(nnx.Module):
    """A small head behind an earlier stage, for training."""

    def __init__(self, arch: Dense, build: Build, rngs: nnx.Rngs) -> None:
        first, last = arch.auxiliary
        self.fusion, self.classifier = Fused(first, build, rngs), Classifier(last, build, rngs)

    def __call__(self, x: Features, size: tuple[int, ...], mode: Mode) -> Float[Array, "B H W K"]:
        """Logits of each pixel of images of this height and width."""
        return self.classifier(self.fusion(x, mode), size)


def pool_to_grid(x: Features, cells: int) -> Float[Array, "B n n C"]:
    """Means over the cells of a grid, in float32; cells overlap where they do not divide evenly.

    As PyTorch's `adaptive_avg_pool2d`.
    """
    rows, columns = (_means(length, cells) for length in x.shape[1:3])
    # Float32 whatever the backend's default: the pyramid is small, and its means are of many.
    return jnp.einsum(
        "bhwc,ih,jw->bijc", x.astype(jnp.float32), rows, columns, precision=lax.Precision.HIGHEST
    )


def _means(length: int, cells: int) -> Float[np.ndarray, "cells length"]:
    """Weights that make of so many positions the means over each cell."""
    weights = np.zeros((cells, length), np.float32)
    for cell in range(cells):
        start, stop = cell * length // cells, -(-(cell + 1) * length // cells)
        weights[cell, start:stop] = 1 / (stop - start)
    return weights


def resize(x: Features, size: tuple[int, ...]) -> Features:
    """Bilinear, to a height and width; pixels are areas, as PyTorch has it by default."""
    batch, *_, channels = x.shape
    shape = (batch, *size, channels)
    return jax.image.resize(x, shape, "linear", antialias=False, precision=lax.Precision.HIGHEST)
