"""Others' ways to choose S and batches, in the same engine."""

from collections.abc import Sequence

import numpy as np

from urnet_jax.serve.schedule.costs import Costs
from urnet_jax.serve.schedule.policy import Bending, Outlook, Policy
from urnet_jax.serve.schedule.request import Request

SWITCH_S = 10.0
"""How often Proteus and INFaaS change the variant of a model."""

HEADROOM = 1.1
"""By which a switched S could answer more than comes."""


class Aimd:
    """The whole network, in batches that grow by one image and halve when late (Clipper)."""

    def __init__(self, limit_s: float) -> None:
        """Begins with batches of one.

        Args:
          limit_s: what a batch may take.
        """
        self._limit_s, self._most, self._began = limit_s, 1.0, 0.0

    def choose(
        self, requests: Sequence[Request], now: float, costs: Costs, outlook: Outlook
    ) -> tuple[int, np.ndarray]:
        """See `policy.Policy`."""
        del now, outlook
        ends = np.cumsum([request.rows for request in requests])
        count = max(1, int(np.searchsorted(ends, self._most, side="right")))
        rows = np.array([request.rows for request in requests[:count]], float)
        scales = _bounded(1.0, requests[:count])
        took = float(costs.seconds(rows, scales))
        if took > self._limit_s:
            self._most = max(1.0, self._most / 2)
        elif ends[count - 1] >= self._most:
            self._most = min(self._most + 1, costs.largest)
        return count, scales


class Switching:
    """One S for all, chosen anew every ten seconds for the rate of the last (Proteus, INFaaS)."""

    def __init__(self) -> None:
        self._scale, self._until = 1.0, -np.inf

    def choose(
        self, requests: Sequence[Request], now: float, costs: Costs, outlook: Outlook
    ) -> tuple[int, np.ndarray]:
        """See `policy.Policy`."""
        if now >= self._until:
            rows = float(np.mean([request.rows for request in requests]))
            fits = costs.seconds_per_row(costs.scales) * rows * outlook.per_s * HEADROOM <= 1
            self._scale = float(costs.scales[fits][-1]) if fits.any() else costs.least_scale
            self._until = now + SWITCH_S
        ends = np.cumsum([request.rows for request in requests])
        count = max(1, int(np.searchsorted(ends, costs.largest, side="right")))
        return count, _bounded(self._scale, requests[:count])


def _bounded(scale: float, requests: Sequence[Request]) -> np.ndarray:
    return np.array([min(max(scale, r.min_scale), r.max_scale) for r in requests])


POLICIES = ("bending", "fixed", "smallest", "aimd", "switching")
"""Ours; S = 1 and the smallest S in our batches; and those above."""


def policy(name: str, deadline_s: float) -> Policy:
    """That of a name; `fixed` and `smallest` are ours, of requests that leave no choice."""
    if name == "aimd":
        return Aimd(deadline_s / 2)
    return Switching() if name == "switching" else Bending()
