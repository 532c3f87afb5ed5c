"""What each S gives and takes: top-1 on images that were held back, and time on one device."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from urnet_jax.runs import kept

FILE = "profile.json"


@dataclasses.dataclass(frozen=True)
class Profile:
    """Measured at each of some S; budgets in FLOPs and milliseconds are met from it.

    Attributes:
      scales: S, ascending.
      top1_percent: at each S, on training images that calibration was not fitted on: it says how S
        compare, and not how well the network does on new images.
      flops_shares: the mean share of FLOPs that those images used at each S.
      images: how many they are.
      batch_sizes: ascending.
      seconds: the time of a call at each S, for each batch size; a list of lists.
      about: of what: device, versions, dataset, date.
    """

    scales: tuple[float, ...]
    top1_percent: tuple[float, ...]
    flops_shares: tuple[float, ...]
    images: int
    batch_sizes: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def seconds_at(self, scale: Any, batch_size: int) -> Any:
        """The time of a call of `batch_size` images at S, on the lines between what was measured.

        Beyond the largest batch that was measured, time grows as it does per image of that one.
        """
        sizes, table = np.array(self.batch_sizes, float), np.array(self.seconds)
        per_scale = [np.interp(batch_size, sizes, row) for row in table]
        beyond = max(1.0, batch_size / sizes[-1])
        return beyond * np.interp(scale, self.scales, per_scale)


def write(workdir: epath.PathLike, step: int, profile: Profile) -> epath.Path:
    """Puts it into the checkpoint's folder, in place of an older one."""
    return kept.write(workdir, step, FILE, profile)


def remove(workdir: epath.PathLike, step: int) -> bool:
    """Removes that of a checkpoint, as a new calibration makes it another's; was there one?"""
    return kept.remove(workdir, step, FILE)


def read(workdir: epath.PathLike, step: int) -> Profile | None:
    """That of a checkpoint, None if it has none; see `from_file`."""
    return from_file(kept.path_of(workdir, step, FILE))


def from_file(path: epath.Path) -> Profile | None:
    """What a file holds, None if there is no such file; a UserError if it is not a profile."""
    return kept.from_file(path, _made, "profile")


def _made(**fields: Any) -> Profile:
    """From what a file holds; ValueError, TypeError or AttributeError where it is not one."""
    made = Profile(**fields)
    _check(made)
    return made


def _check(profile: Profile) -> None:
    """Raises ValueError or TypeError where it does not hold together."""
    scales, sizes = np.array(profile.scales, float), np.array(profile.batch_sizes, float)
    seconds = np.array(profile.seconds, float)
    rows = len(profile.top1_percent), len(profile.flops_shares)
    if not scales.size or set(rows) != {scales.size} or seconds.shape != (scales.size, sizes.size):
        raise ValueError("lists of different lengths")
    if not (np.diff(scales) > 0).all() or not (np.diff(sizes) > 0).all() or sizes[0] < 1:
        raise ValueError("scales or batch sizes that do not ascend")
    measured = np.array([*profile.top1_percent, *profile.flops_shares], float)
    if not np.isfinite(measured).all() or not isinstance(profile.about, Mapping):
        raise ValueError("top-1 or shares that are no numbers")
    if not (np.isfinite(seconds) & (seconds > 0)).all() or scales[0] < 0 or scales[-1] > 1:
        raise ValueError("times that are none, or scales outside of [0, 1]")
