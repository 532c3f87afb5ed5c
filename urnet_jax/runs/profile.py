"""What each S gives and takes: top-1 on images that were held back, and time on one device."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from urnet_jax.errors import UserError, writable
from urnet_jax.runs import checksums
from urnet_jax.runs.meta import FOLDER

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

    def top1_at(self, scale: Any) -> Any:
        """Top-1 in percent at S, on the lines between what was measured."""
        return np.interp(scale, self.scales, self.top1_percent)


def to_text(profile: Profile) -> str:
    """The profile as JSON, from which `from_file` makes an equal one."""
    return json.dumps(dataclasses.asdict(profile), indent=2, allow_nan=False) + "\n"


def write(workdir: epath.PathLike, step: int, profile: Profile) -> epath.Path:
    """Puts it into the checkpoint's folder, in place of an older one."""
    folder = epath.Path(workdir) / FOLDER / str(step)
    with writable(folder / FILE):
        checksums.replace_file(folder, FILE, to_text(profile))
    return folder / FILE


def remove(workdir: epath.PathLike, step: int) -> None:
    """Removes that of a checkpoint: a new calibration makes another network of it."""
    folder = epath.Path(workdir) / FOLDER / str(step)
    with writable(folder / FILE):
        checksums.remove_file(folder, FILE)


def read(workdir: epath.PathLike, step: int) -> Profile | None:
    """That of a checkpoint, None if it has none; see `from_file`."""
    return from_file(epath.Path(workdir) / FOLDER / str(step) / FILE)


def from_file(path: epath.Path) -> Profile | None:
    """What a file holds, None if there is no such file.

    Raises:
      UserError: the file is not a profile.
    """
    if not path.exists():
        return None
    try:
        held = json.loads(path.read_text())
        held["seconds"] = tuple(map(tuple, held["seconds"]))
        lists: dict[str, Any] = {
            name: tuple(x) if isinstance(x, list) else x for name, x in held.items()
        }
        profile = Profile(**lists)
        _check(profile)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"{path} is not a profile: remove it, or run urnet calibrate again."
        ) from error
    return profile


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
