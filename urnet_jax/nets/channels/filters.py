"""A block of one image at inference by the filters of its open channels alone.

How many channels are open differs from image to image, and compiled shapes do not: of each layer of
channels the open ones are gathered, with the filters that they need, to the smallest of a few
static capacities, and what is beyond them is masked.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from urnet_jax.nets.contract import Features

NUM_CAPACITIES = 8
"""Capacities of a layer of channels beside none, in equal steps up to all of its groups."""

MAX_SLICES = 8
"""Groups, at most, whose filters are copied group by group: on CPU that is faster than XLA's gather
along the last axis, which transposes; of more it compiles too long."""


class _Layer(NamedTuple):
    """Channels between two convolutions, which gates switch.

    Attributes:
      gates: of its groups of channels, [1, g].
      order: the groups, the open ones first.
      size: channels of a group.
      which: the place in `capacities(g)` of the least that holds the open ones.
    """

    gates: Float[Array, "1 g"]
    order: Int[Array, " g"]
    size: int
    which: Int[Array, ""]

    def take(self, array: Array, axis: int, capacity: int) -> Array:
        """What of an array belongs to the channels within a capacity; `axis` is theirs."""
        if capacity == self.order.size:
            return array
        groups = self.order[:capacity]
        if capacity <= MAX_SLICES:
            starts = [groups[i] * self.size for i in range(capacity)]
            slices = [lax.dynamic_slice_in_dim(array, at, self.size, axis) for at in starts]
            return jnp.concatenate(slices, axis=axis)
        index = (groups[:, None] * self.size + jnp.arange(self.size)).reshape(-1)
        return jnp.take(array, index, axis=axis, mode="clip", unique_indices=True)

    def mask(self, capacity: int) -> Float[Array, "1 C"]:
        """What the channels within a capacity are multiplied by."""
        gates = self.gates
        if capacity < self.order.size:
            gates = gates[:, self.order[:capacity]]
        return jnp.repeat(gates, self.size, axis=1)


def capacities(groups: int) -> tuple[int, ...]:
    """The capacities of a layer of so many groups, ascending: from none to all."""
    steps = range(NUM_CAPACITIES + 1)
    return tuple(sorted({-(-groups * step // NUM_CAPACITIES) for step in steps}))


def residual(block: Any, x: Features, layers: Sequence[Float[Array, "1 g"]], size: int) -> Features:
    """F(X) of a block of one image.

    Args:
      block: a residual block, of which `conv1`, `bn1` and so on are read.
      x: the features that enter it, [1, H, W, C].
      layers: the gates of each layer of channels between two convolutions.
      size: channels of a gate.

    Returns:
      [1, H / stride, W / stride, D]; zeros where no channel of the last layer is open.
    """
    switched = [_layer(gates, size) for gates in layers]
    for i, (inputs, outputs) in enumerate(itertools.pairwise([None, *switched, None]), 1):
        run = functools.partial(_convolved, getattr(block, f"conv{i}"), getattr(block, f"bn{i}"))
        branches, which = [], jnp.zeros((), jnp.int32)
        for taken in itertools.product(_choices(inputs), _choices(outputs)):
            branches.append(functools.partial(run, inputs=inputs, outputs=outputs, taken=taken))
        for layer in (inputs, outputs):
            if layer is not None:
                which = which * len(_choices(layer)) + layer.which
        x = lax.switch(which, branches, x)
    return x


def _layer(gates: Float[Array, "1 g"], size: int) -> _Layer:
    count = jnp.sum(gates > 0, dtype=jnp.int32)
    which = jnp.searchsorted(jnp.array(capacities(gates.size)), count)
    return _Layer(gates, jnp.argsort(gates[0] <= 0, stable=True), size, which)


def _choices(layer: _Layer | None) -> tuple[int, ...]:
    """The capacities of a layer; what enters a block, and what leaves it, has one."""
    return (-1,) if layer is None else capacities(layer.order.size)


def _convolved(
    conv: nnx.Conv, norm: Any, x: Features, inputs: _Layer | None, outputs: _Layer | None,
    taken: tuple[int, int],
) -> Features:  # fmt: skip
    """A convolution and its BatchNorm; between two of them ReLU and gates too: [1, H, W, D].

    Of what enters, the channels within the capacity `taken[0]` come first; so do those within
    `taken[1]` of what leaves, and then zeros. Of a layer without open channels a block's last
    convolution makes 0, and one within it what BatchNorm makes of zeros.
    """
    stride: Any = conv.strides
    apart: Any = conv.kernel_dilation
    shape = (*(-(-n // stride) for n in x.shape[1:3]), conv.out_features)
    if taken[1] == 0 or (outputs is None and taken[0] == 0):
        return jnp.zeros((1, *shape), conv.dtype)
    if taken[0] == 0:
        assert outputs is not None
        y = jnp.zeros((1, *shape[:2], taken[1] * outputs.size), conv.dtype)
    else:
        kernel = conv.kernel[...]
        if inputs is not None:
            kernel, x = inputs.take(kernel, 2, taken[0]), x[..., : taken[0] * inputs.size]
        if outputs is not None:
            kernel = outputs.take(kernel, 3, taken[1])
        y = conv.conv_general_dilated(
            x.astype(conv.dtype), kernel.astype(conv.dtype), (stride, stride), conv.padding,
            rhs_dilation=(apart, apart), dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=conv.precision,
        )  # fmt: skip
    if outputs is None:
        return _normalized(norm, y)
    y = nnx.relu(_normalized(norm, y, functools.partial(outputs.take, axis=0, capacity=taken[1])))
    y = outputs.mask(taken[1])[:, None, None, :].astype(y.dtype) * y
    return jnp.pad(y, ((0, 0), (0, 0), (0, 0), (0, shape[2] - y.shape[3])))


def _normalized(norm: Any, x: Features, take: Any = lambda array: array) -> Features:
    """BatchNorm with the running statistics of the channels that `take` takes."""
    scale, bias, mean, var = (
        take(array[...]) for array in (norm.scale, norm.bias, norm.mean, norm.var)
    )
    return ((x - mean) * (lax.rsqrt(var + norm.epsilon) * scale) + bias).astype(norm.dtype)
