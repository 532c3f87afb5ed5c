"""A model of the time of a training step on a TPU slice. Nothing in it was measured on a TPU.

The step is computation, then the sums over the chips: the bytes of the gradients, and the latency
of the many small sums that BatchNorm over the global batch needs; none is taken to overlap another.
Input is prepared beside it, and holds it up where it is slower. docs/scaling.md discusses it.
"""

import dataclasses
import math
from collections.abc import Sequence

UTILIZATION = 0.4
"""Share of a chip's peak at which a ResNet's convolutions are assumed to run."""

HOP_S = 1e-6
"""Assumed for a small message to the neighbouring chip."""

LAUNCH_S = 5e-6
"""Assumed for starting a collective."""

DCN_HOP_S = 50e-6
"""Assumed for a small message to a chip in another slice, over the data-centre network."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """What its maker publishes of a chip, and of the host that it sits in.

    Attributes:
      name: of the generation, as in a topology's name.
      peak_flops: per second, bfloat16.
      interconnect_bytes_per_s: all links of a chip together, one way.
      dcn_bytes_per_s: of the data-centre network, a chip's share, one way.
      dimensions: of the torus.
      wraps_from: the side from which it is one; a smaller side is open, and a ring over it has half
        of the bandwidth.
      most_in_slice: chips.
      chips_per_host: as sold.
      cores_per_host: virtual ones, two to a core of the processor.
    """

    name: str
    peak_flops: float
    interconnect_bytes_per_s: float
    dcn_bytes_per_s: float
    dimensions: int
    wraps_from: int
    most_in_slice: int
    chips_per_host: int
    cores_per_host: int


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 300e9, 6.25e9, 3, 4, 4096, 4, 240),
        Chip("v5e", 197e12, 200e9, 3.125e9, 2, 16, 256, 8, 224),
        Chip("v5p", 459e12, 600e9, 6.25e9, 3, 4, 6144, 4, 208),
    )
}


@dataclasses.dataclass(frozen=True)
class Step:
    """Predicted seconds of a step's parts.

    Attributes:
      chips: that share the batch.
      compute_s: convolutions, all else hidden in the utilization.
      sums_s: the bytes that are summed over the chips, nearly all of them gradients.
      latency_s: of all collectives, however small.
      input_s: what the hosts take to decode the batch; 0 where that is not asked.
    """

    chips: int
    compute_s: float
    sums_s: float
    latency_s: float
    input_s: float

    @property
    def seconds(self) -> float:
        return max(self.compute_s + self.sums_s + self.latency_s, self.input_s)

    @property
    def efficiency(self) -> float:
        """Computation's share of the step: what more chips give of what they could."""
        return self.compute_s / self.seconds

    def with_latency(self, factor: float) -> "Step":
        """The step if small messages took so many times as long."""
        return dataclasses.replace(self, latency_s=factor * self.latency_s)


def predict(
    chip: Chip, chips: int, *, flops: float, summed_bytes: float, collectives: int,
    images: int = 0, images_per_s_per_core: float = math.inf,
) -> Step:  # fmt: skip
    """The parts of a step.

    Args:
      chip: of the slice, or of as many slices as these chips need.
      chips: that share the batch, a power of 2.
      flops: of a chip in a step.
      summed_bytes: over the chips in a step.
      collectives: that a step runs.
      images: of a chip in a step.
      images_per_s_per_core: that a host decodes.
    """
    in_slice = min(chips, chip.most_in_slice)
    slices = chips // in_slice
    sides = _sides(in_slice, chip.dimensions)
    # In a ring of n, a sum takes 2 (n - 1) / n of the bytes, and 2 (n - 1) steps one way around;
    # between slices, where each reaches each at once, a tree takes 2 log2(n).
    sums_s = 2 * (in_slice - 1) / in_slice * summed_bytes / chip.interconnect_bytes_per_s
    if min(sides) < chip.wraps_from:
        sums_s *= 2
    hops_s = HOP_S * sum(2 * (side - 1) for side in sides)
    if slices > 1:
        # Between slices each chip exchanges only its part of the sum.
        part = summed_bytes / in_slice
        sums_s += 2 * (slices - 1) / slices * part / chip.dcn_bytes_per_s
        hops_s += DCN_HOP_S * 2 * math.log2(slices)
    cores = chip.cores_per_host / chip.chips_per_host
    return Step(
        chips,
        flops / (UTILIZATION * chip.peak_flops),
        sums_s,
        collectives * (LAUNCH_S + hops_s) if chips > 1 else 0.0,
        images / (images_per_s_per_core * cores),
    )


def _sides(chips: int, dimensions: int) -> Sequence[int]:
    """Of the torus that is nearest to a cube, each a power of 2."""
    exponent, sides = int(math.log2(chips)), []
    for left in range(dimensions, 0, -1):
        sides.append(2 ** (exponent // left))
        exponent -= exponent // left
    return sides
