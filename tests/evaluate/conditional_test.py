"""Which gates look at the image: counts that are known, and plots of them."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from helpers.report_pages import Page, made_up, page_of
from urnet_jax.errors import UserError
from urnet_jax.evaluate import conditional, inspection


@pytest.fixture
def known(run):
    """Of 3 gates at two S: always, in half and never open; then always, always, always."""
    gates = np.zeros((2, 200, 3), np.uint8)
    gates[:, :, 0] = gates[1] = 1
    gates[0, ::2, 1] = 1
    # Once in 200 and once not in 200 are within the 1 %.
    gates[0, 7, 2], gates[1, 9, 0] = 1, 0
    return made_up(run, gates, num_classes=10)


def test_kinds_are_counted_by_stage(known):
    kinds = conditional.gate_kinds(known[1])
    assert list(kinds.columns) == ["scale", "group", "gates", "always", "never", "conditional"]
    assert kinds["group"].tolist() == 2 * ["stage 1", "stage 2", "stage 3"]
    counts = kinds[["gates", "always", "never", "conditional"]].to_numpy().tolist()
    assert counts[:3] == [[1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 1, 0]]
    assert counts[3:] == 3 * [[1, 1, 0, 0]]


def test_the_page_says_which_gates_look(run, known):
    words = Page(page_of(run, *known)).words()
    assert "Which gates look at the image?" in words
    rows = Page(page_of(run, *known)).tables[2]
    assert rows[0] == ["S", "Always\nopen", "Conditional", "Never\nopen"]
    assert rows[1:] == [["0.6", "1 (33 %)", "1 (33 %)", "1 (33 %)"],
                        ["0.8", "3 (100 %)", "0 (0 %)", "0 (0 %)"]]  # fmt: skip


def test_probabilities_are_drawn_beside_their_prior(run):
    evaluation = run.evaluate((0.5, 1.0), run.subset(50))
    figure = inspection.plot_probabilities(evaluation, 0.5, (0.6, 0.4))
    assert len(figure.axes) == 3
    for axes in figure.axes:
        stairs: Any = axes.patches[0]
        heights, edges, _ = stairs.get_data()
        assert np.sum(heights * np.diff(edges)) == pytest.approx(1)
        (prior,) = axes.lines
        xs, ys = map(np.asarray, prior.get_data())
        # The density of Beta(0.6, 0.4) is larger at 1 than at 0, and both than in the middle.
        assert ys[-1] > ys[0] > ys[len(xs) // 2] > 0
    with pytest.raises(UserError, match="The scale is 0.7; the evaluation holds 0.5, 1"):
        inspection.plot_probabilities(evaluation, 0.7)
    bare = dataclasses.replace(evaluation, gate_logits=None)
    assert (
        "How probable it is that a gate opens"
        not in Page(page_of(run, run.subset(50), bare)).words()
    )
