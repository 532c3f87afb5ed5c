"""The groups of a batch, samples in a row that share an S; without JAX, for configs ask too."""

import math
from typing import Literal

ScaleDraw = Literal["sample", "group", "step"]

GROUPS = 8
"""Parts of a batch that each draw one S, where S is drawn per `group`."""


def num_groups(draw: ScaleDraw, batch_size: int) -> int:
    """Into how many equal parts of samples in a row, each with its own S, a batch falls."""
    return {"sample": batch_size, "group": math.gcd(batch_size, GROUPS), "step": 1}[draw]
