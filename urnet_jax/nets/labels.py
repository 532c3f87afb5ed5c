"""What labels a network learns from. Without JAX, for the checks of configs ask too."""

from typing import Any, Literal

Labels = Literal["class", "map"]
"""One class for an image, or one for each of its pixels."""


def labels_of(arch: Any) -> Labels:
    """Of a network, by its description, which says so where they are no classes."""
    return getattr(arch, "labels", "class")
