"""Which gates look at the image: those that are not always, or never, open (1907.06627, figures).

kinds = gate_kinds(run.evaluate((0.5, 1.0)))
"""

from typing import Any

import numpy as np
import pandas as pd
from jax.scipy.stats import beta as beta_distribution
from matplotlib.figure import Figure

from urnet_jax.errors import UserError
from urnet_jax.evaluate.evaluation import Evaluation
from urnet_jax.evaluate.figures import NotebookFigure

ALWAYS, NEVER = 0.99, 0.01
"""A gate that is open for more, or for less, of the samples is always, or never, open."""

KINDS = {"always": "#1f5f8b", "conditional": "#e0a030", "never": "0.8"}


def gate_kinds(evaluation: Evaluation) -> pd.DataFrame:
    """A row for every S and part of the network: how many of its gates look at the image.

    Columns: `scale`, `group` (a stage, say), `gates`, and how many of them are `always` open (for
    more than 99 % of the samples), `never` (less than 1 %) and `conditional`, the others.
    """
    rows = []
    for scale, gates in zip(evaluation.scales, evaluation.gates, strict=True):
        usage, start = gates.mean(axis=0, dtype=np.float64), 0
        for group, count in evaluation.gate_groups:
            own, start = usage[start : start + count], start + count
            always, never = int((own > ALWAYS).sum()), int((own < NEVER).sum())
            rows.append((scale, group, count, always, never, count - always - never))
    return pd.DataFrame(rows, columns=["scale", "group", "gates", "always", "never", "conditional"])


def plot_gate_kinds(kinds: pd.DataFrame, width: float = 6.4) -> Figure:
    """The shares of gates of each kind, bars by S in a panel for each part of the network.

    Args:
      kinds: of `gate_kinds`.
      width: of the figure, in inches.
    """
    groups = list(kinds["group"].unique())
    scales = list(kinds["scale"].unique())
    size = (width, 1.0 + max(1.6, 0.24 * len(scales)))
    figure = NotebookFigure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, group in zip(panels, groups, strict=True):
        own: Any = kinds[kinds["group"] == group]
        left = np.zeros(len(own))
        for kind, colour in KINDS.items():
            share = 100 * (own[kind] / own["gates"]).to_numpy(float)
            axes.barh(range(len(own)), share, left=left, color=colour, label=kind, height=0.8)
            left += share
        axes.set_title(f"{group}\n{own['gates'].iloc[0]} gates", fontsize=8)
        axes.set(xlim=(0, 100))
        axes.set_xticks((0, 50, 100))
        axes.tick_params(labelsize=8, length=2)
        axes.spines[:].set_visible(False)
    panels[0].set_yticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    panels[0].set_ylabel("S", fontsize=9)
    figure.supxlabel("gates, %", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_probabilities(
    evaluation: Evaluation, scale: float, prior: tuple[float, float] | None = None,
    width: float = 6.4,
) -> Figure:  # fmt: skip
    """How probable gates are to open at one S, a histogram for each part of the network.

    Args:
      evaluation: with its gates' logits.
      scale: one of its S.
      prior: alpha and beta of the Beta distribution that gates were shaped to, drawn beside.
      width: of the figure, in inches.

    Raises:
      UserError: the evaluation has no logits, or not that S.
    """
    if evaluation.gate_logits is None:
        raise UserError("The evaluation holds no gate logits: make it anew, by Run.evaluate.")
    found = np.flatnonzero(np.isclose(evaluation.scales, scale))
    if not found.size:
        held = ", ".join(f"{known:g}" for known in evaluation.scales)
        raise UserError(f"The scale is {scale:g}; the evaluation holds {held}.")
    logits = evaluation.gate_logits[found[0]]
    groups = evaluation.gate_groups
    figure = NotebookFigure(figsize=(width, 2.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    edges, start = np.linspace(0, 1, 21), 0
    for axes, (group, count) in zip(panels, groups, strict=True):
        own, start = logits[:, start : start + count], start + count
        own = 1 / (1 + np.exp(-np.clip(own, -50, 50)))
        density, _ = np.histogram(own, edges, density=True)
        axes.stairs(density, edges, fill=True, color="#a9c6db")
        if prior is not None:
            middle = (edges[1:] + edges[:-1]) / 2
            of_prior = np.asarray(beta_distribution.pdf(middle, *prior))
            axes.plot(middle, of_prior, color="#8a5a00", linewidth=1.2)
        axes.set_title(group, fontsize=8)
        axes.set_xticks((0, 0.5, 1))
        axes.tick_params(labelsize=8, length=2)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("density", fontsize=9)
    figure.supxlabel(f"probability that a gate opens, at S = {scale:g}", fontsize=9)
    return figure
