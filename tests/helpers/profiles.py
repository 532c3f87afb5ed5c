"""A profile whose times are known in closed form."""

from urnet_jax.runs.profile import Profile

SCALES, SIZES = (0.2, 0.4, 0.7, 1.0), (1, 4, 16)
TOP1 = (70.0, 80.0, 83.0, 84.0)
SECONDS = tuple(tuple(0.001 + 0.002 * s * n for n in SIZES) for s in SCALES)
PROFILE = Profile(SCALES, TOP1, SCALES, 100, SIZES, SECONDS)
