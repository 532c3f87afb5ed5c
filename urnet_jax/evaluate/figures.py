"""What plots are made of: figures that notebooks show, PNG files, labels that find room."""

import io
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

_LABEL_MARGIN_PX = 5


class NotebookFigure(Figure):
    """A figure that notebooks show as it is; of others they do so once pyplot is imported."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


def thumbnail(image: UInt8[np.ndarray, "h w c"], most: int = 112) -> Image.Image:
    """The image, made smaller where it has more than `most` pixels a side."""
    shown = Image.fromarray(image.squeeze())
    shown.thumbnail((most, most))
    return shown


def to_png(picture: Figure | Image.Image, dpi: float | Literal["figure"] = "figure") -> bytes:
    """The figure or image as a PNG file's content; `dpi` is of a figure."""
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=dpi)
    else:
        picture.save(buffer, format="png")
    return buffer.getvalue()


class Curve(NamedTuple):
    """Points that are joined by lines, each with its label."""

    xs: Sequence[float] | np.ndarray
    ys: Sequence[float] | np.ndarray
    labels: Sequence[str]


def label_points(axes: Axes, *curves: Curve) -> None:
    """Writes each label beside its point, clear of the curves, the axes and other labels.

    A label that finds no room, among many points in one spot, is left out.
    """
    places = [axes.transData.transform(np.c_[curve.xs, curve.ys]) for curve in curves]
    points = np.concatenate(places)
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in points]
    for of_one in places:
        for start, end in zip(of_one[:-1], of_one[1:], strict=True):
            dots = np.linspace(start, end, 2 + int(np.hypot(*(end - start)) / 4))
            taken += [Bbox.from_bounds(x - 1, y - 1, 2, 2) for x, y in dots]
    # With room to spare: saved at another resolution, text is not exactly as large.
    inside = axes.get_window_extent().padded(-_LABEL_MARGIN_PX)
    # Below and right, then above and left: where a rising, flattening curve is not.
    shifts = [(4, -5), (-4, 5), (0, 8), (0, -8)]
    shifts += [(dx, dy) for r in (20, 34, 48) for dx, dy in ((r, -r), (-r, r), (0, r), (0, -r))]
    labelled = [each for curve in curves for each in zip(*curve, strict=True)]
    for point, (x, y, label) in zip(points, labelled, strict=True):
        for dx, dy in shifts:
            text = axes.annotate(label, (x, y), (dx, dy), textcoords="offset points", fontsize=8)
            text.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
            text.set_verticalalignment("bottom" if dy > 0 else "top")
            box = text.get_window_extent()
            contained = inside.contains(*box.min) and inside.contains(*box.max)
            middle = np.mean([box.min, box.max], axis=0)
            nearest = points[np.hypot(*(points - middle).T).argmin()]
            far = abs(dy) > 8
            clear = far or np.array_equal(nearest, point)  # whose label it is
            if contained and clear and not box.count_overlaps(taken):
                taken.append(box)
                if far:
                    line = {"arrowstyle": "-", "color": "0.6"}
                    axes.annotate("", (x, y), (dx, dy), textcoords="offset points", arrowprops=line)
                break
            text.remove()
