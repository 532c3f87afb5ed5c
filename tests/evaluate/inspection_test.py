"""Looking into the runs that other tests made, and into tables whose answers are known."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import PNGFormatter

from urnet_jax.errors import UserError
from urnet_jax.evaluate import gate_tables, inspection
from urnet_jax.evaluate.evaluation import summarize
from urnet_jax.evaluate.figures import to_png

SCALES = (0.2, 1.0)


@pytest.fixture(scope="module")
def evaluation(run):
    return run.evaluate(SCALES)


@pytest.fixture(scope="module")
def gates(evaluation):
    return inspection.gate_table(evaluation)


def test_a_row_for_every_sample_needs_none_for_every_gate(evaluation, gates):
    short: Any = gate_tables.sample_table(evaluation)
    whole: Any = inspection.samples(gates)
    pd.testing.assert_frame_equal(short[whole.columns], whole, check_dtype=False)
    for by in ("blocks", "flops"):
        few: Any = inspection.easy_and_hard(gates, 0.2, 5, by=by)
        pd.testing.assert_frame_equal(
            inspection.easy_and_hard(short, 0.2, 5, by=by), few, check_dtype=False, check_like=True
        )
        assert few[by].iloc[:5].max() <= few[by].iloc[5:].min()


def test_the_table_holds_every_sample_block_and_scale(run, evaluation, gates):
    n, blocks = 360, run.arch.num_blocks
    assert list(gates.columns) == [
        "sample", "label", "prediction", "scale", "block", "gate", "gate_logit", "flops",
    ]  # fmt: skip
    assert len(gates) == len(SCALES) * n * blocks
    assert not gates.duplicated(["sample", "scale", "block"]).any()
    rng = np.random.default_rng(0)
    for k, i, b in zip(*(rng.integers(0, high, 50) for high in (2, n, blocks)), strict=True):
        (row,) = gates.query(
            "scale == @SCALES[@k] and sample == @i and block == @b + 1"
        ).itertuples()
        assert row.gate == evaluation.gates[k, i, b]
        assert row.prediction == evaluation.predictions[k, i]
        assert row.label == evaluation.labels[i]
        assert row.flops == evaluation.flops[k, i]


def test_gates_are_open_where_their_logits_are_not_negative(gates):
    assert ((gates["gate_logit"] >= 0) == (gates["gate"] == 1)).all()
    assert gates["gate_logit"].nunique() > 100
    table = inspection.samples(gates)
    assert set(table["blocks"]) <= set(range(4))


def test_it_says_what_evaluation_said(run, gates, finished):
    lines: Any = pd.read_json(finished / "metrics.jsonl", lines=True)
    row = lines.query("kind == 'eval'").iloc[-1]
    table: Any = inspection.samples(gates).query("scale == @row.scale")
    assert 100 * table["correct"].mean() == pytest.approx(row.top1_percent)
    assert table["blocks"].mean() == pytest.approx(row.blocks_mean)
    assert table["flops"].mean() == pytest.approx(row.flops_mean)
    assert table["flops"].max() <= 2 * run.arch.cost.full_macs


def test_usage_by_block_and_by_class(evaluation, gates):
    usage = inspection.usage(gates)
    assert usage.index.tolist() == list(SCALES) and usage.columns.tolist() == [1, 2, 3]
    np.testing.assert_allclose(usage, evaluation.gates.mean(axis=1))
    by_class = inspection.usage_by_class(gates)
    assert by_class.shape == (10, 2)
    threes = evaluation.gates[:, evaluation.labels == 3]
    np.testing.assert_allclose(by_class.loc[3], threes.mean(axis=(1, 2)))
    assert inspection.usage(gates, by="label").shape == (10, 3)
    together: Any = inspection.usage(gates, by=["label", "scale"])
    assert together.shape == (20, 3)
    np.testing.assert_allclose(together.loc[(3, 1.0)], threes[1].mean(axis=0))
    drawn: Any = inspection.plot_usage_by_class(gates, scale=1.0).axes[0].images[0].get_array()
    np.testing.assert_allclose(drawn[3], 100 * threes[1].mean(axis=0))


def test_the_part_at_some_scales(evaluation):
    part = inspection.at_scales(evaluation, (1.0, 0.5))
    assert part.scales == (1.0,)
    for name in ("predictions", "loss", "gates", "flops", "gate_logits"):
        np.testing.assert_array_equal(getattr(part, name), getattr(evaluation, name)[1:])
    np.testing.assert_array_equal(part.labels, evaluation.labels)
    whole = inspection.at_scales(evaluation, SCALES)
    pd.testing.assert_frame_equal(inspection.gate_table(whole), inspection.gate_table(evaluation))


def made_up() -> pd.DataFrame:
    """Four samples of two blocks at two S; all are of class 1."""
    rows = []
    paths = {0: ("10", "11"), 1: ("10", "11"), 2: ("00", "01"), 3: ("11", "11")}
    predictions = {0: (1, 1), 1: (0, 1), 2: (0, 0), 3: (1, 1)}
    for sample, path in paths.items():
        for scale, gates, prediction in zip((0.6, 0.8), path, predictions[sample], strict=True):
            for block, gate in enumerate(gates, 1):
                rows.append((sample, 1, prediction, scale, block, int(gate), 0.0, 10.0))
    columns = [
        "sample", "label", "prediction", "scale", "block", "gate", "gate_logit", "flops",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def test_paths_and_samples_by_hand():
    table = made_up()
    assert inspection.distinct_paths(table).to_dict() == {0.6: 3, 0.8: 2}
    chosen = inspection.easy_and_hard(table, 0.6, count=2)
    assert chosen["sample"].tolist() == [2, 1, 3, 0]
    assert chosen["kind"].tolist() == ["easy", "easy", "hard", "hard"]
    assert chosen["blocks"].tolist() == [0, 1, 2, 1]
    lost = inspection.right_and_wrong(table)
    assert lost["sample"].tolist() == [1]
    assert lost[["prediction", "prediction_at_less"]].values.tolist() == [[1, 0]]
    with pytest.raises(UserError, match="The scale is 0.5; the table holds 0.6, 0.8."):
        inspection.easy_and_hard(table, 0.5)


def test_what_one_sample_does_as_the_scale_sweeps(run, gates):
    sweep = run.sweep(7, SCALES)
    expected = gates.query("sample == 7").reset_index(drop=True)
    pd.testing.assert_frame_equal(
        sweep[["sample", "label", "prediction", "scale", "block", "gate"]],
        expected[["sample", "label", "prediction", "scale", "block", "gate"]],
    )
    np.testing.assert_allclose(sweep["gate_logit"], expected["gate_logit"], atol=1e-3)
    assert run.sweep(0)["scale"].nunique() == len(inspection.SWEEP)
    with pytest.raises(UserError, match="The sample is 360; the split test of digits has 0 to 359"):
        run.sweep(360)


def test_a_run_says_what_it_is_in_one_line(run):
    said = f"Run({run.arch.describe()}, step {run.meta.step}, phase joint)"
    assert repr(run) == said and len(said) < 120


def test_plots(run, evaluation, gates):
    figures = [
        inspection.plot_usage(evaluation),
        inspection.plot_top1(evaluation),
        inspection.plot_usage_by_class(gates),
        inspection.plot_sweep(run.sweep(3)),
        inspection.plot_blocks(evaluation, 1.0),
        inspection.plot_logits(gates),
        run.plot_samples(inspection.easy_and_hard(gates, 1.0, 4), columns=4),
    ]
    for figure in figures:
        assert to_png(figure).startswith(b"\x89PNG")
    assert [text.get_text() for text in figures[-1].axes[0].texts] == []
    assert "blocks" in figures[-1].axes[0].get_title()


def test_a_figure_shows_itself_in_a_notebook(evaluation):
    formatter: Any = PNGFormatter()  # knows nothing of matplotlib, as in a session without pyplot
    assert formatter(inspection.plot_usage(evaluation)).startswith(b"\x89PNG")


def test_the_blocks_of_one_scale(evaluation):
    (axes,) = inspection.plot_blocks(evaluation, 0.2).axes
    bars: Any = axes.patches
    heights = [bar.get_height() for bar in bars]
    np.testing.assert_allclose(heights, 100 * evaluation.gates[0].mean(axis=0))
    row = summarize(evaluation).iloc[0]
    assert f"S = 0.2: top-1 {row.top1_percent:.2f} %" in axes.get_title()
    assert f"{100 * row.flops_share:.1f} % of the FLOPs" in axes.get_title()
    with pytest.raises(UserError, match="The scale is 0.5; the table holds 0.2, 1."):
        inspection.plot_blocks(evaluation, 0.5)


def test_the_bands_of_the_logits_by_hand():
    # Of block b at S, three samples' logits are b * S - 1, b * S and b * S + 1.
    grid = [(s, b, b * s + d) for s in (0.0, 1.0) for b in range(1, 15) for d in (-1, 0, 1)]
    table = pd.DataFrame(grid, columns=["scale", "block", "gate_logit"])
    axes: Any = inspection.plot_logits(table).axes
    # The twelve of fourteen blocks that move most, in network order.
    assert [a.get_title() for a in axes] == [f"block {b}" for b in range(3, 15)]
    (zero, median) = axes[0].lines
    assert median.get_xydata().tolist() == [[0, 0], [1, 3]]
    assert zero.get_ydata() == [0, 0]
    band = axes[0].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((-0.9, 3.9))


def test_a_subset_is_spread_over_the_split(run, evaluation):
    split: Any = run.split()
    assert run.subset(360, split) is split and run.subset(1000).num_examples == 360
    few = run.subset(3, split)
    np.testing.assert_array_equal(few.images, split.images[[0, 180, 359]])
    np.testing.assert_array_equal(few.labels, split.labels[[0, 180, 359]])
    found = run.evaluate(SCALES, few)
    np.testing.assert_array_equal(found.predictions, evaluation.predictions[:, [0, 180, 359]])
    with pytest.raises(UserError, match="given 0 examples"):
        run.subset(0)


def test_samples_of_a_subset_keep_their_numbers(run, gates):
    split: Any = run.split()
    few = run.subset(20, split)
    part = run.gates(SCALES, few)
    assert part["sample"].unique().tolist() == few.numbers.tolist()
    chosen = inspection.easy_and_hard(part, 1.0, 2)
    for asked in (few, split):  # A number names the same image in both.
        shown = [axes.images[0].get_array() for axes in run.plot_samples(chosen, asked).axes[:4]]
        for image, number in zip(shown, chosen["sample"], strict=True):
            np.testing.assert_array_equal(image, split.images[number].squeeze())
        sample = int(chosen["sample"].iloc[-1])
        swept = run.sweep(sample, SCALES, asked)
        expected = gates.query("sample == @sample").reset_index(drop=True)
        columns = ["sample", "label", "prediction", "scale", "block", "gate"]
        pd.testing.assert_frame_equal(swept[columns], expected[columns])
    with pytest.raises(
        UserError, match="Sample 1 is not in this subset of 20 samples of split test"
    ):
        run.sweep(1, SCALES, few)


def test_captions_say_what_a_lower_scale_made_of_an_image(run):
    table = inspection.right_and_wrong(made_up())
    (axes,) = run.plot_samples(table, columns=1).axes
    assert axes.get_title() == "#1: class 1\n2 blocks\nsaid 0 at the lower S"


def test_images_are_those_of_the_split(run):
    split = run.split()
    figure = run.plot_samples(pd.DataFrame(
        {"sample": [5], "label": [split.labels[5]], "prediction": [0], "correct": [True],
         "blocks": [2]}
    ), split, columns=1)  # fmt: skip
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown, split.images[5].squeeze())
