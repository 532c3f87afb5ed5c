"""What a calibration found, kept with the checkpoint that it is of."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from urnet_jax.runs import kept

FILE = "calibration.json"

SPARE = 1.0
"""What S = 1 has beyond its offset, so that all is open for other images too."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Offsets of gates' logits by which S is the share of FLOPs that is used.

    Attributes:
      scales: S, ascending.
      offsets: what is added to each gate's logit at each S; between them it is interpolated.
      shares_before: of FLOPs that were used at each S without an offset, on the fitted images.
      shares: with it, on those.
      shares_unseen: with it, on images that the offsets were not fitted on.
      images: how many were fitted on.
      images_unseen: how many others.
      about: where it comes from: date, versions, device, dataset.
      shares_between: on the images of `shares_unseen`, at the S half-way between each two of the
        scales; empty in calibrations from before there were any.
    """

    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    shares_before: tuple[float, ...]
    shares: tuple[float, ...]
    shares_unseen: tuple[float, ...]
    images: int
    images_unseen: int
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shares_between: tuple[float, ...] = ()

    def offset(self, scale: Any) -> Float[np.ndarray, "..."]:
        """The offset at any S: between two of the scales on the line, outside that of the last.

        S = 1 has some to spare, for its own is the least one that opens all for the fitted images.
        """
        found = np.interp(scale, self.scales, self.offsets)
        return np.asarray(found + np.where(np.asarray(scale) == 1, SPARE, 0.0), np.float32)

    def outside(self, scales: Iterable[float]) -> list[float]:
        """Those S that lie below or above all that were calibrated."""
        return [s for s in scales if not self.scales[0] <= s <= self.scales[-1]]

    @property
    def error_between(self) -> float:
        """`error` at the S half-way between each two of the scales."""
        middle = (np.array(self.scales[1:]) + self.scales[:-1]) / 2
        return float(np.mean(np.abs(np.array(self.shares_between) - middle)))

    @property
    def error(self) -> float:
        """Mean distance of S from the share that is used, on images that were not fitted on."""
        return float(np.mean(np.abs(np.array(self.shares_unseen) - self.scales)))


def write(workdir: epath.PathLike, step: int, calibration: Calibration) -> epath.Path:
    """Puts it into the checkpoint's folder, in place of an older one."""
    return kept.write(workdir, step, FILE, calibration)


def read(workdir: epath.PathLike, step: int) -> Calibration | None:
    """That of a checkpoint, None if it has none; see `from_file`."""
    return from_file(kept.path_of(workdir, step, FILE))


def from_file(path: epath.Path) -> Calibration | None:
    """What a file holds, None if there is no such file; a UserError if it is not a calibration."""
    return kept.from_file(path, _made, "calibration")


def _made(**fields: Any) -> Calibration:
    """From what a file holds; ValueError, TypeError or AttributeError where it is not one."""
    made = Calibration(**fields)
    _check(made)
    return made


def _check(calibration: Calibration) -> None:
    """Raises ValueError or TypeError where it does not hold together."""
    scales, offsets = (np.array(x, float) for x in (calibration.scales, calibration.offsets))
    kept = calibration.shares_before, calibration.shares, calibration.shares_unseen
    if calibration.shares_between and len(calibration.shares_between) != scales.size - 1:
        raise ValueError("lists of different lengths")
    if {len(x) for x in (offsets, *kept)} != {scales.size} or not scales.size:
        raise ValueError("lists of different lengths")
    if not np.isfinite(offsets).all() or not (np.diff(scales) > 0).all():
        raise ValueError("offsets that are no numbers, or scales that do not ascend")
    if scales[0] < 0 or scales[-1] > 1:
        raise ValueError("scales outside of [0, 1]")
