"""The layers that networks are made of."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from urnet_jax.nets.contract import Features
from urnet_jax.nets.cost import Convolution
from urnet_jax.nets.mode import Build, Mode
from urnet_jax.xla import batch_norm
from urnet_jax.xla.convolution import conv_general_dilated


def conv(spec: Convolution, build: Build, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution as He et al. have it: no bias, initial weights scaled by its fan-out."""
    # Explicit padding: `SAME` would pad strided convolutions on one side only, unlike He et al.
    around = spec.kernel // 2 * spec.dilation
    return nnx.Conv(
        spec.inputs,
        spec.outputs,
        kernel_size=(spec.kernel, spec.kernel),
        strides=spec.stride,
        padding=[(around, around)] * 2,
        kernel_dilation=spec.dilation,
        use_bias=False,
        dtype=jnp.dtype(build.dtype),
        precision=build.precision,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def norm(channels: int, build: Build, rngs: nnx.Rngs) -> "BatchNorm":
    """BatchNorm with PyTorch's constants."""
    return BatchNorm(channels, momentum=0.9, epsilon=1e-5, dtype=jnp.dtype(build.dtype), rngs=rngs)


class BatchNorm(nnx.BatchNorm):
    """Flax's over the last axis of [B, H, W, C], faster with a batch's statistics."""

    def __call__(
        self, x: Features, use_running_average: bool, weight: Float[Array, "B 1"] | None = None,
    ) -> Features:  # fmt: skip
        """The normalised x, each sample times its weight; a batch moves the running statistics."""
        if use_running_average:
            x = super().__call__(x, use_running_average=True)
            return x if weight is None else weigh(weight, x)
        assert self.scale is not None and self.bias is not None
        out, mean, var = batch_norm.normalize(
            x.astype(self.dtype), self.scale[...], self.bias[...], self.epsilon,
            None if weight is None else weight[:, 0],
        )  # fmt: skip
        self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
        self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * var
        return out


def running(mode: Mode) -> bool:
    """Whether BatchNorm beside the gates normalises with its running statistics."""
    return mode.batch_norm == "running"


def pool(features: Float[Array, "B H W C"]) -> Float[Array, "B C"]:
    """Global average pool: means over positions, in float32 whatever the features' dtype."""
    return batch_norm.over_positions(features) / (features.shape[1] * features.shape[2])


@jax.custom_vjp
def weigh(weight: Float[Array, "B w"], x: Features) -> Features:
    """Each sample times its weight, or each of its channels times its own; w is 1 or C."""
    return weight[:, None, None, :].astype(x.dtype) * x


def _weigh_forward(weight: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
    return weigh(weight, x), (weight, x)


def _weigh_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    weight, x = saved
    of_weight = batch_norm.over_positions(grad.astype(weight.dtype) * x)
    if weight.shape[1] == 1:
        of_weight = of_weight.sum(axis=1, keepdims=True)
    return of_weight.astype(weight.dtype), weigh(weight, grad)


weigh.defvjp(_weigh_forward, _weigh_backward)
