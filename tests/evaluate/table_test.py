"""The table in the terminal."""

import subprocess
import sys

import pandas as pd
import pytest

from urnet_jax.evaluate import table


def summary(full_flops: float) -> pd.DataFrame:
    """One row of `evaluation.summarize`, with the widest numbers that are expected."""
    return pd.DataFrame(
        {
            "scale": [0.5],
            "top1_percent": 75.0,
            "blocks_mean": 100.25,
            "blocks_std": 10.5,
            "blocks_min": 0,
            "blocks_max": 104,
            "blocks_total": 104,
            "flops_mean": 0.9 * full_flops,
            "flops_std": 123.4e3,
            "flops_full": full_flops,
            "flops_share": 0.9,
        }
    )


@pytest.mark.parametrize(("full_flops", "shown"), [(2e6, "1.80 ± 0.12"), (15.6e9, "14.04 ± 0.00")])
def test_table_fits_80_columns(capsys, monkeypatch, full_flops, shown):
    monkeypatch.setenv("COLUMNS", "80")
    table.print_table(summary(full_flops), "title")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for words in ("100.25 ± 10.50 (0-104)", "75.00", "blocks used of 104", shown):
        assert words in printed


def test_the_table_needs_no_matplotlib():
    code = "import sys; import urnet_jax.evaluate.table as t; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def used(scales, blocks, flops):
    return pd.DataFrame({"scale": scales, "usage_mean": blocks, "flops_share": flops})


def test_usage_far_from_s_is_one_sentence():
    far = used([0.2, 0.5, 1.0], [0.31, 0.5, 0.95], [0.2, 0.39, 0.9])
    assert table.strays(far, "blocks") == (
        "Mind: the share of blocks that is used is more than 10 points from S: 31 % at S = 0.2. "
        "`urnet calibrate` makes S the share of FLOPs; longer training may bring usage nearer."
    )
    assert "FLOPs that is used is more than 10 points from S: 39 % at S = 0.5." in (
        table.strays(far, "flops")
    )


def test_usage_near_s_needs_no_word():
    assert table.strays(used([0.2, 1.0], [0.29, 0.91], [0.5, 0.5]), "blocks") == ""


def test_what_always_runs_is_the_reason():
    below, both = used([0.01], [0.2], [0.2]), used([0.01, 0.5], [0.2, 0.2], [0.2, 0.7])
    for calibrated in (True, False):
        mind = table.strays(below, "flops", calibrated=calibrated, least=0.2)
        assert mind.endswith("20 % at S = 0.01. 20 % always runs: no smaller S can be met.")
        for other, least in ((both, 0.2), (used([0.0], [0.9], [0.9]), 0.04)):
            mind = table.strays(other, "flops", calibrated=calibrated, least=least)
            assert mind and "always runs:" not in mind


def test_who_is_calibrated_is_not_told_to_be():
    mind = table.strays(used([0.01], [0.2], [0.2]), "flops", calibrated=True)
    assert "20 % at S = 0.01. The network comes no nearer" in mind and "calibrate" not in mind
