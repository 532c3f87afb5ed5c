"""What a batch is expected to take, and an answer to be worth, at each S."""

import functools
import math

import numpy as np
from jaxtyping import Float, Float64, Int

from urnet_jax.errors import UserError
from urnet_jax.runs.profile import Profile
from urnet_jax.serve.schedule.request import Least

SLOWER, FASTER = 0.3, 0.03
"""How far the correction follows a batch that took longer than expected, and one that took less:
being late costs an answer, being early a little accuracy."""

RELAXES_S = 1.0
"""A correction above 1, and a scheduler's margin, fade over so many seconds in which nothing runs.
Else a few slow batches or answers would have all requests refused for good, for none would ever run
and be fast."""

TIME_TO_SPARE = 1e-3
"""What S = 1 is worth beyond S = 0, as a share of answers that are right: where top-1 does not rise
with S, as on images that were learned by heart, the larger S is taken while there is time."""

REMEMBERED = 4096
"""Requests of different rows or bounds whose times are remembered, at most."""

LARGEST_STEP = 4.0
"""One batch moves the correction as if it had taken at most so many times what was expected."""


class Costs:
    """A profile that learns: times are corrected by what batches take."""

    def __init__(self, profile: Profile, batch_sizes: tuple[int, ...] | None = None) -> None:
        """Takes times as they were measured, to begin with.

        Args:
          profile: of this device.
          batch_sizes: that batches are padded to; by default those of the profile.

        Raises:
          UserError: the profile has fewer than two S.
        """
        if len(profile.scales) < 2:
            raise UserError(
                "The profile holds one S, and a server chooses among several: run urnet calibrate "
                "without --scales."
            )
        self.batch_sizes = tuple(batch_sizes or profile.batch_sizes)
        self.scales = np.array(profile.scales)
        self.top1 = np.maximum.accumulate(np.array(profile.top1_percent) / 100)
        table = [profile.seconds_at(self.scales, size) for size in self.batch_sizes]
        # What is larger takes no less: a table with noise in it would make odd choices.
        rising = np.maximum.accumulate(np.maximum.accumulate(table, axis=0), axis=1)
        self._seconds = dict(zip(self.batch_sizes, rising, strict=True))
        self.correction = 1.0
        # Asked for each request that comes, most of which are alike.
        self.least_of = functools.lru_cache(maxsize=REMEMBERED)(self._least_of)

    @property
    def least_scale(self) -> float:
        """The smallest S that there is."""
        return float(self.scales[0])

    @property
    def largest(self) -> int:
        """Images in the largest batch."""
        return self.batch_sizes[-1]

    def padded(self, rows: int) -> int:
        """The batch size for so many images; the largest where none has room."""
        return next((size for size in self.batch_sizes if size >= rows), self.largest)

    def value(self, scale: Float[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
        """How likely an answer at S is right, and a trifle for the S itself."""
        return np.asarray(np.interp(scale, self.scales, self.top1) + TIME_TO_SPARE * scale)

    def seconds(
        self, rows: Float64[np.ndarray, " n"], scale: Float[np.ndarray, "*k n"]
    ) -> Float64[np.ndarray, "*k"]:
        """Of a batch of n requests; what pads it takes as little as the smallest S.

        Args:
          rows: images of each request.
          scale: S of each, or several such choices.
        """
        count = int(rows.sum())
        size = self.padded(count)
        table = self._seconds[size]
        each = np.interp(scale, self.scales, table) @ rows
        return np.asarray(self.correction * (each + (size - count) * table[0]) / size)

    def alone(self, rows: int, scale: float) -> float:
        """Of a batch with one request."""
        return self.correction * self.least_of(rows, scale).alone_s

    def least_s(self, size: int) -> float:
        """Of a batch of one of `batch_sizes`, all at the smallest S."""
        return self.correction * float(self._seconds[size][0])

    def _least_of(self, rows: int, scale: float) -> Least:
        """What a request of so many rows takes whose smallest S is `scale`."""
        both = np.array([max(scale, self.least_scale), self.least_scale])
        alone_s = float(self.seconds(np.array([float(rows)]), both[:1])) / self.correction
        each, least = self.seconds_per_row(both)
        return Least(alone_s, rows * float(each / least))

    def seconds_per_row(
        self, scale: Float[np.ndarray, "..."], rows: int | None = None
    ) -> Float64[np.ndarray, "..."]:
        """What an image at S adds where batches have so many images; by default full ones."""
        rows = rows or self.largest
        size = self.padded(rows)
        table = self._seconds[size]
        padding = (size - rows) * table[0] / rows
        each = np.interp(scale, self.scales, table) + padding
        return np.asarray(self.correction * each / size)

    def observe(self, expected_s: float, took_s: float) -> None:
        """Corrects times by a batch's: what `seconds` said of it, and what it took."""
        if expected_s <= 0:
            return
        ratio = min(took_s / expected_s, LARGEST_STEP)
        self.correction *= 1 + (ratio - 1) * (SLOWER if ratio > 1 else FASTER)

    def relax(self, idle_s: float) -> None:
        """Lets a correction above 1 fade, after so many seconds in which nothing was run."""
        if self.correction > 1 and idle_s > 0:
            self.correction = 1 + (self.correction - 1) * math.exp(-idle_s / RELAXES_S)

    def sizes(self, rows: int) -> Int[np.ndarray, " k"]:
        """Batch sizes that make sense with so many images waiting, ascending."""
        most = min(rows, self.largest)
        return np.array([*(size for size in self.batch_sizes if size < most), most])
