"""The part of `report.html` that shows which gates look at the image."""

from typing import Any

from urnet_jax.config import Config
from urnet_jax.evaluate import conditional
from urnet_jax.evaluate.evaluation import Evaluation
from urnet_jax.evaluate.page.pieces import Beside, Paragraph, Piece, Plot, Section, Table

_WIDTH = 6.4


def section(config: Config, evaluation: Evaluation) -> Section:
    """How many gates are always, never and sometimes open, and how probable opening is."""
    kinds = conditional.gate_kinds(evaluation)
    total: Any = kinds.groupby("scale", sort=False)[["gates", "always", "conditional", "never"]]
    rows = [
        (f"{row.Index:g}", *(f"{n:,} ({100 * n / row.gates:.0f} %)" for n in row[2:]))
        for row in total.sum().itertuples()
    ]
    columns = "S", "Always\nopen", "Conditional", "Never\nopen"
    about = Paragraph(
        f"Of {evaluation.num_gates} gates: always open are those that open for more than 99 % of "
        "the images, never those that do for less than 1 %. The others are conditional: they look "
        "at the image."
    )
    most = max(total.sum().itertuples(), key=lambda row: row.conditional)
    bars = Plot(
        conditional.plot_gate_kinds(kinds, _WIDTH),
        "The gates of each part of the network: always open, conditional, never open.",
        f"Bars of gates by kind. Most are conditional at S = {most.Index:g}: {most.conditional} of "
        f"{most.gates}.",
    )
    pieces: list[Piece] = [Beside((Table("Gates by kind at each S", columns, rows), about)), bars]
    if evaluation.gate_logits is not None:
        prior = _prior(config, most.Index)
        line = "" if prior is None else " The line is the Beta distribution they were shaped to."
        pieces.append(
            Plot(
                conditional.plot_probabilities(evaluation, most.Index, prior, _WIDTH),
                f"How probable it is that a gate opens, over gates and images.{line}",
                f"Histograms of gates' probabilities at S = {most.Index:g}, by part of the "
                "network.",
            )
        )
    return Section("Which gates look at the image?", pieces)


def _prior(config: Config, scale: float) -> tuple[float, float] | None:
    """Alpha and beta that batch-shaping asked for at this S; None where it was not asked."""
    asked = config.shaping
    if not asked.weight:
        return None
    total = asked.alpha + asked.beta
    alpha = total * min(max(scale, 0.02), 0.98) if asked.mean == "scale" else asked.alpha
    return alpha, total - alpha
