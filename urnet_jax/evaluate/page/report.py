"""The page `report.html`: an evaluation in tables and pictures, each with what it shows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from urnet_jax.config import heeds_scale, skips
from urnet_jax.data.splits import Split
from urnet_jax.evaluate import plots
from urnet_jax.evaluate.evaluation import Evaluation, summarize
from urnet_jax.evaluate.page import gates, images, maps
from urnet_jax.evaluate.page.pieces import (
    Beside,
    Facts,
    Paragraph,
    Plot,
    Section,
    Table,
    is_wide,
    render,
    width_of,
)
from urnet_jax.evaluate.run import Run
from urnet_jax.evaluate.static import compare
from urnet_jax.nets.labels import labels_of
from urnet_jax.nets.tasks import measure_of


def make(
    run: Run, split: Split, evaluation: Evaluation, record: Mapping[str, Any],
    beside: pd.DataFrame | None = None,
) -> str:  # fmt: skip
    """The page, as HTML that needs no other file.

    A plain network, or one in phase `pretrain`, gets its facts and its table. Otherwise one sample
    is evaluated once more, over a sweep of S; all else is taken from `evaluation`.

    Args:
      run: what was evaluated.
      split: on which.
      evaluation: of every example of `split`; without `gate_logits` how probable gates are to open
        is not shown.
      record: what eval.json records of it, see `files.describe`.
      beside: plain networks that are shown beside it, of `static.read`.
    """
    arch = evaluation.arch
    kind = "Gated" if arch.gated else "Plain"
    title = f"{kind} {arch.name} on {record['dataset']}"
    if not heeds_scale(run.config, run.meta.phase):
        sentence = f"{_one_cost(run, evaluation)} So there is one row to show."
        sections = [Section("Accuracy and cost", _table(evaluation))]
        sections += _of_images(run, split, evaluation)
        return render(title, [Paragraph(sentence), _facts(record)], sections)
    by_flops = run.calibration is not None or run.config.scale.of == "flops"
    of = "FLOPs" if by_flops else "blocks"
    about = Paragraph(
        "The compute of this residual network is turned up and down while it is in use. "
        f"{_decides(run, evaluation.num_gates)} where it does not, the block's shortcut alone "
        f"passes the features on. S asks for about that share of the {of}. One set of weights "
        "serves every S."
    )
    end = [
        Paragraph(
            "eval.csv, in the folder of this page, also holds the table's numbers, and "
            "eval_samples.npz those of each image."
        )
    ]
    plain = record.get(f"plain_{evaluation.measure.column}")
    sections = [_results(evaluation, plain, beside)]
    if run.config.gate.random_drop == "never":
        sections += _of_images(run, split, evaluation)
    else:
        sentence = (
            "No single images are shown: chance decides which blocks an image is left with, and "
            "that says nothing of the image."
        )
        end = [Paragraph(sentence), *end]
    return render(title, [about, _facts(record)], sections, end)


def _of_images(run: Run, split: Split, evaluation: Evaluation) -> list[Section]:
    """What gates and single images do."""
    if labels_of(evaluation.arch) == "map":
        return maps.sections(run, split, evaluation)
    if not run.has_trained_gates:
        return []
    seen = images.Seen(run, split, evaluation)
    sections = [seen.paths(), gates.section(run.config, evaluation)]
    if heeds_scale(run.config, run.meta.phase):
        sections += [seen.lost(), seen.sweep()]
    return sections


def _one_cost(run: Run, evaluation: Evaluation) -> str:
    """Why S changes nothing."""
    arch, num_gates = evaluation.arch, evaluation.num_gates
    if skips(run.config, run.meta.phase):
        noun = getattr(arch, "gate_noun", "blocks")
        return (
            f"The gates of this network see the image alone, and decide for each which of its "
            f"{num_gates} {noun}, called blocks below, run, whatever S is."
        )
    why = "This network is plain: it has no gates"
    if arch.gated:
        why = "This checkpoint is of phase pretrain, in which gates are not used"
    return f"{why}, and all of its {num_gates} blocks run for every image, whatever S is."


def _decides(run: Run, num_blocks: int) -> str:
    """Who decides which blocks run."""
    scale = "a scale S from 0 to 1, which the user sets,"
    if run.config.gate.random_drop != "never":
        return (
            f"Of its {num_blocks} residual blocks {scale} leaves some to each image, which are "
            "drawn at random; a block runs if it is left, and"
        )
    if run.config.model.get("gate_network") == "external":
        return (
            f"A ResNet-8 beside it sees the image and {scale} and decides for each of the "
            f"{num_blocks} residual blocks whether it runs;"
        )
    if noun := getattr(run.arch, "gate_noun", ""):
        sees = f"and {scale} " if getattr(run.arch, "gate_scale", True) else ""
        return (
            f"Its {num_blocks} {noun}, called blocks below, see the features that enter a residual "
            f"block {sees}and decide for each image what of that block runs;"
        )
    return (
        f"Before each of its {num_blocks} residual blocks a small gate sees the features and "
        f"{scale} and decides for each image whether the block runs;"
    )


def _facts(record: Mapping[str, Any]) -> Facts:
    device, rows = record["device"], record["rows"]
    kind = device["kind"]
    if kind != device["platform"]:
        kind = f"{kind} ({device['platform']})"
    if device["count"] > 1:
        kind = f"{device['count']} times {kind}"
    return Facts(
        {
            "Network": record["architecture"],
            "Images": f"{rows[0]['examples']:,} of {record['dataset']}, split {record['split']}",
            "Checkpoint": f"step {record['step']:,}, phase {record['phase']}",
            "Evaluated": f"{record['date']}, execution {record['execution']}",
            "Device": f"{kind}; {device['cpu_cores']} CPU cores",
            "Versions": ", ".join(f"{name} {of}" for name, of in record["versions"].items()),
            "Command": record["command"].split(" "),
        }
    )


def _table(evaluation: Evaluation) -> tuple[Table, Paragraph]:
    """The table, and how to read it."""
    unit, name = (1e9, "G") if evaluation.full_flops >= 1e9 else (1e6, "M")
    measure = evaluation.measure
    records: Any = summarize(evaluation).itertuples()
    rows = [
        (
            f"{row.scale:g}",
            f"{getattr(row, measure.column):.2f}",
            f"{100 * row.flops_share:.1f}",
            f"{row.blocks_mean:.2f} ± {row.blocks_std:.2f}",
            f"{row.blocks_min}–{row.blocks_max}",
            f"{row.flops_mean / unit:.2f} ± {row.flops_std / unit:.2f}",
        )
        for row in records
    ]
    columns = (
        "S",
        f"{measure.at_the_start},\n%",
        "FLOPs,\n%",
        f"Blocks\nof {evaluation.num_gates}",
        "Blocks,\nmin–max",
        f"FLOPs,\n{name}",
    )
    legend = (
        "Blocks and FLOPs are those that an image used: mean ± standard deviation over the images, "
        "and the fewest and most blocks. FLOPs are two for each multiply-add of convolutions and "
        "linear layers; those in percent are of the full network, with every block and gate, which "
        f"takes {evaluation.full_flops / unit:.2f} {name}."
    )
    title = f"{measure.at_the_start}, blocks and FLOPs at each S"
    return Table(title, columns, rows), Paragraph(legend)


def _results(
    evaluation: Evaluation, plain_percent: float | None, static: pd.DataFrame | None
) -> Section:
    """The table, the measure against FLOPs, and which blocks are used at which S."""
    summary, blocks = summarize(evaluation), evaluation.num_gates
    measure = evaluation.measure
    ends: Any = summary.iloc[[0, -1]].itertuples()
    low, high = (
        f"{getattr(row, measure.column):.2f} % at S = {row.scale:g} with "
        f"{100 * row.flops_share:.1f} % of the FLOPs"
        for row in ends
    )
    caption = (
        f"{measure.at_the_start} against FLOPs, a point for each S. Bars are one standard "
        "deviation over the images."
    )
    if plain_percent is not None:
        caption += (
            " The dashed line is the plain network that this one began from, at the end of phase "
            f"pretrain: {plain_percent:.2f} %."
        )
    if static is not None:
        caption += " The squares are plain networks of several sizes, each trained by itself."
    figure = plots.plot_against_flops(
        summary, plain_percent=plain_percent, width=width_of(1), static=static
    )
    curve = Plot(figure, caption, f"Curve of {measure.title} against FLOPs, from {low} to {high}.")

    used = 100 * evaluation.gates.mean(axis=(0, 1), dtype=np.float64)
    most, least = used.argmax(), used.argmin()
    usage = Plot(
        plots.plot_block_usage(
            evaluation.gates, evaluation.scales, evaluation.gate_groups, width=width_of(blocks)
        ),
        "Which blocks run: the share of images that use each block at each S.",
        f"Map of usage by block and S. Over all S block {most + 1} is used most, by "
        f"{used[most]:.0f} % of the images, and block {least + 1} least, by {used[least]:.0f} %.",
    )
    plots_beside = Beside((curve, usage), wide=is_wide(blocks))
    shown = (*_table(evaluation), *_static(summary, static), plots_beside)
    return Section("Accuracy and cost at each S", shown)


def _static(summary: pd.DataFrame, static: pd.DataFrame | None) -> tuple[Table, ...]:
    """The network at the cost of each plain one, where those are known."""
    if static is None:
        return ()
    measure = measure_of(summary.columns)
    records: Any = compare(summary, static).itertuples()
    rows = [
        (
            row.network,
            f"{100 * row.flops_share:.1f}",
            f"{getattr(row, measure.column):.2f}",
            "–" if np.isnan(row.over) else f"{row.resizable_percent:.2f}",
            "–" if np.isnan(row.over) else f"{row.over:+.2f}",
        )
        for row in records
    ]
    its = f"Its\n{measure.title}, %"
    columns = ("Plain\nnetwork", "FLOPs,\n%", its, "Here,\n%", "Over it,\npoints")
    return (Table("At the cost of plain networks, between the points above", columns, rows),)
