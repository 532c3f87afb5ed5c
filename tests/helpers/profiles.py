"""Profiles whose times are known in closed form."""

import dataclasses

from urnet_jax.runs.profile import Profile

SCALES, SIZES = (0.2, 0.4, 0.7, 1.0), (1, 4, 16)
TOP1 = (70.0, 80.0, 83.0, 84.0)
SECONDS = tuple(tuple(0.001 + 0.002 * s * n for n in SIZES) for s in SCALES)
PROFILE = Profile(SCALES, TOP1, SCALES, 100, SIZES, SECONDS)

FLAT = dataclasses.replace(
    PROFILE, seconds=tuple(tuple(0.008 * s + 0.0001 * s * n for n in SIZES) for s in SCALES)
)
"""Of a device on which a small batch takes as long as a large one."""
