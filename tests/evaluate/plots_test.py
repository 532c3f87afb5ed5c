"""Plots read as matplotlib has drawn them."""

from typing import Any

import numpy as np
import pandas as pd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from urnet_jax.evaluate import plots
from urnet_jax.evaluate.figures import to_png


def labels_of(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def summary_of(points: list[tuple[float, float]], std: float) -> pd.DataFrame:
    """What `summarize` says of points (FLOPs, top-1), both from 0 to 1, at equally spaced S."""
    flops, top1 = np.array(points).T
    return pd.DataFrame(
        {
            "scale": np.linspace(0, 1, len(points)).round(3),
            "top1_percent": 100 * top1,
            "flops_share": flops,
            "flops_std": 1000 * std,
            "flops_full": 1000.0,
        }
    )


UNIT = st.floats(0, 1)
CROWDED = [(0.001 * k, 0.5 + 0.001 * k) for k in range(12)]

# Drawn at 72 dpi, one of these labels was over the left edge by a third of a pixel.
SCATTERED = [
    (0.11, 0.96), (0.16, 0.43), (0.2, 0.36), (0.23, 0.72), (0.25, 0.29), (0.37, 0.24),
    (0.44, 0.36), (0.63, 0.54), (0.71, 0.48), (0.81, 0.29), (0.82, 0.6), (0.82, 0.89),
    (0.85, 0.13), (0.93, 0.64), (0.98, 0.78),
]  # fmt: skip


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    points=st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=12),
    std=st.sampled_from([0.0, 0.02, 0.3]),
    plain=st.none() | UNIT,
    width=st.sampled_from([3.8, 6.4]),
    dpi=st.sampled_from([72, 150, 200, 300]),
)
@example(points=CROWDED, std=0.0, plain=None, width=3.8, dpi=200)
@example(points=[*CROWDED, (1.0, 0.9)], std=0.02, plain=0.9, width=6.4, dpi=72)
@example(points=SCATTERED, std=0.0, plain=None, width=6.4, dpi=72)
def test_labels_stay_within_the_axes_at_any_resolution(points, std, plain, width, dpi):
    summary = summary_of(sorted(points), std)
    percent = None if plain is None else 100 * plain
    figure: Any = plots.plot_against_flops(summary, "a title", percent, width)
    for resolution in (figure.dpi, dpi):
        figure.set_dpi(resolution)
        figure.draw_without_rendering()
        (axes,) = figure.axes
        inside = axes.get_window_extent()
        for label in filter(lambda text: text.get_text(), axes.texts):
            box = label.get_window_extent()
            assert inside.x0 <= box.x0 <= box.x1 <= inside.x1
            assert inside.y0 <= box.y0 <= box.y1 <= inside.y1


def test_every_point_is_labelled_even_where_points_crowd():
    summary = pd.DataFrame(
        {
            "scale": [0.2, 0.4, 0.6, 1.0],
            "top1_percent": [97.5, 97.6, 97.6, 97.6],
            "flops_share": [0.45, 0.46, 0.465, 0.95],
            "flops_std": 10.0,
            "flops_full": 1000.0,
        }
    )
    figure = plots.plot_against_flops(summary, "a title")
    assert labels_of(figure) == ["S = 0.2", "S = 0.4", "S = 0.6", "S = 1"]


def test_usage_map_shows_the_share_of_samples():
    # Four samples at two scales on three blocks.
    gates = np.array(
        [[[0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0]], [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]]
    )
    figure: Any = plots.plot_block_usage(gates, (0.5, 1.0), [("stage 1", 1), ("the rest", 2)])
    drawn = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(drawn, [[75, 25, 0], [100, 100, 75]])
    assert labels_of(figure) == ["stage 1", "the rest", "75", "25", "0", "100", "100", "75"]


def test_deep_usage_map_has_no_numbers():
    gates = np.random.default_rng(0).integers(0, 2, (6, 50, 54), np.uint8)
    groups = [(f"stage {k}", 18) for k in (1, 2, 3)]
    figure = plots.plot_block_usage(gates, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], groups)
    assert labels_of(figure) == ["stage 1", "stage 2", "stage 3"]
    assert len(to_png(figure)) > 1000
