"""Each stage's analytic FLOPs against what XLA counts in that stage alone, compiled.

Three corrections make the two counts comparable; each is exact:
  * XLA counts BatchNorm, ReLU and all other elementwise work too: the same stage is compiled once
    more without its convolutions and linear layers, and the difference is theirs.
  * XLA leaves out the taps of a kernel that hang over the padded border: `border_macs` adds them.
  * XLA counts the body of a loop once, however often it runs: entry and body are compiled alone,
    each as a stage of one block, and counted as entry + (n - 1) x body.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.blocks import Stage
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.cost import sides
from urnet_jax.nets.mode import Build, Mode
from urnet_jax.nets.residual import IMAGENET_BLOCKS, Shortcut, StageSpec

# Counts that are right agree to a few FLOPs; within 2 % a stage could lose its gates (2e-6 of it at
# the least) or a CIFAR projection (1 %) unseen.
AGREEMENT = 1e-6

SHORTCUTS: tuple[Shortcut, ...] = ("A", "pool", "B")
ARCHITECTURES = [
    *(
        Architecture("cifar", depth, 10, 32, shortcut=shortcut, gated=gated)
        for depth in (20, 110)
        for shortcut in SHORTCUTS
        for gated in (False, True)
    ),
    *(
        Architecture("imagenet", d, 1000, 224, width=64, shortcut="B", gated=g, gate_reduction=16)
        for d in IMAGENET_BLOCKS
        for g in (False, True)
    ),
]
for_every_architecture = pytest.mark.parametrize("arch", ARCHITECTURES, ids=Architecture.describe)


@dataclasses.dataclass(frozen=True)
class FirstStages(Architecture):
    """The network with only its first stages, so that two counts differ by one stage."""

    num_stages: int = 0

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        stages = super().stages
        gone = [dataclasses.replace(stage, num_blocks=0) for stage in stages[self.num_stages :]]
        return (*stages[: self.num_stages], *gone)


def analytic_flops(arch: Architecture) -> list[int]:
    """Per stage, what the architecture counts in it: blocks, projection and gates."""
    fields = dataclasses.asdict(arch)
    macs = [FirstStages(**fields, num_stages=n).cost.full_macs for n in range(len(arch.stages) + 1)]
    return [2 * int(step) for step in np.diff(macs)]


def xla_flops(arch: Architecture) -> list[float]:
    """Per stage, XLA's count for one image, corrected as above."""
    counts, (size, _) = [], sides(arch.stage_input_size)
    for spec in arch.stages:
        entry = dataclasses.replace(spec, num_blocks=1)
        body = dataclasses.replace(entry, in_channels=spec.out_channels, stride=1)
        out_size = -(-size // spec.stride)
        entry_flops, body_flops = (
            corrected_flops(
                block, size, arch.shortcut if block.changes_shape else "B", arch.gated,
                arch.gate_reduction,
            )
            for block, size in ((entry, size), (body, out_size))
        )  # fmt: skip
        counts.append(entry_flops + (spec.num_blocks - 1) * body_flops)
        size = out_size
    return counts


@functools.cache
def corrected_flops(
    spec: StageSpec, size: int, shortcut: Shortcut, gated: bool, gate_reduction: int
) -> float:
    """XLA's FLOPs of the stage's convolutions and linear layers for one image of features."""
    # Of an architecture, a stage reads no more than this.
    arch = Architecture(
        "cifar", 8, 10, 32, shortcut=shortcut, gated=gated, gate_reduction=gate_reduction
    )
    stage = nnx.eval_shape(lambda: Stage(arch, spec, Build(), rngs=nnx.Rngs(0)))
    whole = compiled_flops(stage, spec, size, gated)
    for _, module in nnx.iter_modules(stage):
        if isinstance(module, nnx.Conv):
            module.conv_general_dilated = without_convolution
        elif isinstance(module, nnx.Linear):
            module.dot_general = without_product
    return whole - compiled_flops(stage, spec, size, gated) + 2 * border_macs(spec, size)


def compiled_flops(stage: Stage, spec: StageSpec, size: int, gated: bool) -> float:
    """What XLA counts in the compiled stage."""
    graphdef, state = nnx.split(stage)

    def run(state: Any, x: jax.Array, scale: jax.Array, ones: jax.Array) -> Any:
        # What is counted is the same for any gates, since `dense` runs every block.
        return nnx.merge(graphdef, state)(
            x, None, GateInputs(scale, given=None if gated else ones), Mode(unroll=True)
        )

    shapes = (1, size, size, spec.in_channels), (1,), (1, spec.num_blocks)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    options: Any = {
        # Fusion would repeat elementwise work in everything that reads it, in one of the two
        # compilations more often than in the other.
        "xla_disable_hlo_passes": "fusion",
        # These two change no count; compiling takes a quarter of the time.
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
    }
    compiled = jax.jit(run).lower(state, *arguments).compile(options)
    analysis = compiled.cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def without_convolution(x: jax.Array, kernel: jax.Array, strides: Any, *_: Any, **__: Any) -> Any:
    """An array of the convolution's shape (SAME padding), which depends on x, without a FLOP."""
    x = x[:, :: strides[0], :: strides[1], :1]
    return jnp.broadcast_to(x, (*x.shape[:3], kernel.shape[-1]))


def without_product(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> Any:
    """An array of the matrix product's shape, which depends on x, without a FLOP."""
    return jnp.broadcast_to(x[:, :1], (x.shape[0], kernel.shape[-1]))


def border_macs(spec: StageSpec, size: int) -> int:
    """Multiply-adds by the zeros around the features, over all 3x3 convolutions of the stage."""
    out_size = -(-size // spec.stride)
    mid, out = spec.mid_channels, spec.out_channels
    if spec.block == "bottleneck":
        entry = mid * mid * border_taps(size, spec.stride)
        body = mid * mid * border_taps(out_size, 1)
    else:
        second = mid * out * border_taps(out_size, 1)
        entry = spec.in_channels * mid * border_taps(size, spec.stride) + second
        body = out * mid * border_taps(out_size, 1) + second
    return entry + (spec.num_blocks - 1) * body


def border_taps(size: int, stride: int) -> int:
    """Taps of a 3x3 kernel, over all positions, that fall on padding 1 around size x size pixels.

    Along a side the first position loses a tap to the border, and the last one too unless the
    stride ends before it; a tap is inside where it is inside along both sides.
    """
    out_size = -(-size // stride)
    last = (out_size - 1) * stride + 1
    inside = 3 * out_size - 1 - (last == size)
    return (3 * out_size) ** 2 - inside**2


def test_taps_on_the_border_by_hand():
    # 2 x 2 pixels: each of four positions sees 4 pixels and 5 zeros.
    assert border_taps(2, 1) == 4 * 5
    # Stride 2 on 4 x 4 pixels: positions at 0 and 2 of a side see 2 and 3 pixels of it.
    assert border_taps(4, 2) == 36 - (2 + 3) ** 2
    # Stride 2 on 3 x 3 pixels: positions at 0 and 2 see 2 each.
    assert border_taps(3, 2) == 36 - (2 + 2) ** 2


@for_every_architecture
def test_stages_against_xla(arch):
    assert analytic_flops(arch) == pytest.approx(xla_flops(arch), rel=AGREEMENT)


def test_stages_stem_and_head_are_the_whole_count():
    arch = Architecture("imagenet", 50, 1000, 224, width=64, shortcut="B", gate_reduction=16)
    stem_and_head = 2 * (7 * 7 * 3 * 64 * 112 * 112 + 2048 * 1000)
    assert sum(analytic_flops(arch)) + stem_and_head == 2 * arch.cost.full_macs


def test_blocks_add_up_to_the_whole_stage():
    arch = Architecture("cifar", 20, 10, 32)
    whole = corrected_flops(arch.stages[1], 32, arch.shortcut, arch.gated, arch.gate_reduction)
    assert whole == pytest.approx(xla_flops(arch)[1], rel=AGREEMENT)
