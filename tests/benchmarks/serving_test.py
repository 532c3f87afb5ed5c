import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

import urnet_jax
from benchmarks import (
    serving,
    serving_engine,
    serving_load,
    serving_policies,
    serving_report,
)
from urnet_jax.errors import UserError
from urnet_jax.runs import export
from urnet_jax.runs.profile import Profile
from urnet_jax.serve.schedule.costs import Costs
from urnet_jax.serve.schedule.policy import Outlook
from urnet_jax.serve.schedule.request import Request

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCALES, SIZES = (0.2, 1.0), (1, 4, 16)
SECONDS = tuple(tuple(0.001 + 0.002 * s * n for n in SIZES) for s in SCALES)
COSTS = Costs(Profile(SCALES, (70.0, 84.0), SCALES, 9, SIZES, SECONDS))


@pytest.mark.parametrize("pattern", ["steady", "poisson", "gamma8"])
def test_arrivals_have_the_rate_that_is_asked_for(pattern):
    times = serving_load.arrivals(pattern, 100, 50, 0)
    assert len(times) / 50 == pytest.approx(100, rel=0.1)
    assert (np.diff(times) >= 0).all() and times[0] >= 0 and times[-1] < 50
    gaps = np.diff(times)
    spread = gaps.var() / gaps.mean() ** 2
    assert spread == pytest.approx({"steady": 0, "poisson": 1, "gamma8": 8}[pattern], rel=0.25)
    again = serving_load.arrivals(pattern, 100, 50, 0)
    np.testing.assert_array_equal(times, again)


def test_a_step_is_in_the_middle_third():
    times = serving_load.arrivals("step10", 300, 30, 1)
    rates = np.histogram(times, [0, 10, 20, 30])[0] / 10
    np.testing.assert_allclose(rates, [30, 300, 30], rtol=0.25)
    assert (np.diff(times) >= 0).all()


def test_a_trace_is_sped_up_and_its_form_kept(tmp_path):
    stamps = pd.Timestamp("2023-11-16 18:17:03") + pd.to_timedelta(
        np.cumsum([0, 1, 1, 30, 1, 1, 30, 1, 1]), unit="s"
    )
    pd.DataFrame({"TIMESTAMP": stamps}).to_csv(tmp_path / "azure_llm_code.csv", index=False)
    times = serving_load.arrivals("code", 4.5, 2, 0, tmp_path)
    assert len(times) == 9 and times[0] == 0 and times[-1] == pytest.approx(2)
    gaps = np.diff(times)
    assert gaps.max() / gaps.min() == pytest.approx(30)
    with pytest.raises(UserError, match="needs .*azure_llm_conv.csv: name its folder"):
        serving_load.arrivals("conv", 4.5, 2, 0, tmp_path)


def waiting(count: int, rows: int = 1) -> list[Request]:
    return [Request(rows, 0.0, 1.0) for _ in range(count)]


def test_aimd_grows_by_one_and_halves():
    aimd, sizes = serving_policies.Aimd(limit_s=0.02), []
    for _ in range(12):
        count, scales = aimd.choose(waiting(40), 0.0, COSTS, Outlook(0, 1024))
        assert (scales == 1).all()
        sizes.append(count)
    assert sizes[:4] == [1, 2, 3, 4]
    # Five are padded to sixteen, which takes as long as 0.0153 s; nine take more than 0.02.
    largest = max(sizes)
    after = sizes[sizes.index(largest) + 1 :]
    assert min(after) == largest // 2


def test_switching_takes_the_largest_scale_that_carries_the_rate_for_ten_seconds():
    policy = serving_policies.Switching()
    for now, rate, expected in ((0, 100, 1.0), (5, 1500, 1.0), (11, 1500, 0.2), (15, 10, 0.2)):
        _, scales = policy.choose(waiting(3), now, COSTS, Outlook(rate, 1024))
        assert scales.tolist() == [expected] * 3


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--workdir is missing"),
        (["--workdir=x", "--patterns=poison:2"], "--patterns names 'poison:2'; expected a load"),
        (["--workdir=x", "--patterns=poisson:x"], "--patterns names 'poisson:x'"),
        (["--workdir=x", "--policies=ours"], "--policies names 'ours'; expected some of bending"),
        (["--workdir=x", "--seeds=a"], "--seeds is 'a'"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(flags, sentence):
    with pytest.raises(UserError) as error:
        serving.parse(["serving.py", *flags])
    assert sentence in str(error.value)


def test_what_became_of_requests_is_counted():
    values = serving.parse(["serving.py", "--workdir=x", "--seconds=2", "--rows=2"])
    times = np.array([0.1, 0.2, 1.1, 1.9])
    found = {
        "latency": np.array([0.05, 0.2, 0.09, np.nan]), "delay": np.array([0, 0, 0.2, 0]),
        "status": np.array([200, 200, 200, 503]), "scale": np.array([1.0, 0.5, 0.5, np.nan]),
        "classes": np.array([[3, 4], [5, 6], [7, 0], [-1, -1]]), "own_cpu_s": np.array(0.5),
    }  # fmt: skip
    row = serving._row(found, times, np.array([3, 4, 5, 6, 7, 8]), values)
    # The second was late, the last refused; of the images of the others three of four are right.
    assert (row["attainment"], row["goodput_per_s"], row["top1_percent"]) == (0.5, 1.0, 75.0)
    assert (row["mean_scale"], row["shed"], row["failed"]) == (0.75, 1, 0)
    assert (row["sent_late"], row["sender_cpu_share"]) == (0.25, 0.25)
    lines = serving_report.timeline(found, times, 2, 100)
    assert lines["requests_per_s"] == [4.0, 0.0, 2.0, 2.0]
    assert lines["attainment"] == [0.5, None, 1.0, 0.0] and lines["scale"][2] == 0.5


@pytest.mark.slow
def test_a_short_load_on_a_real_server(measured, tmp_path):
    command = [
        sys.executable, str(ROOT / "benchmarks/serving.py"), f"--workdir={measured}",
        "--patterns=poisson:0.05", "--policies=bending,fixed", "--seconds=2", "--rows=2",
        "--deadline_ms=20000", f"--output={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    record: Any = json.loads(path.read_text())
    assert [row["policy"] for row in record["rows"]] == ["bending", "fixed"]
    for row in record["rows"]:
        assert row["failed"] == 0 and row["attainment"] == row["simulated_attainment"] == 1
    assert record["rows"][1]["mean_scale"] == 1 and (tmp_path / "serving.png").exists()
    # There is time for all to run at whichever S is best.
    (bound,) = record["bounds"]
    assert bound["in_time_percent"] == pytest.approx(100)
    values = serving.parse(["serving.py", f"--workdir={measured}"])
    profile = export.bundle_of(measured, "newest").profile
    assert profile is not None
    best = serving._top1(values, Costs(profile)).max()
    assert bound["right_percent"] == pytest.approx(100 * best)
    assert "bound_percent" in (tmp_path / "serving.csv").read_text()


@pytest.mark.slow
def test_the_engine_alone(measured):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    plan = {"times": np.arange(12) / 100, "images": images, "rows": 3}
    for bounds in ((0.0, 1.0), (0.3, 0.3)):
        found, correction = serving_engine.replay(str(measured), "bending", 60.0, bounds, plan)
        assert (found["status"] == 200).all() and correction > 0
        assert (found["latency"] > 0).all() and (found["delay"] >= 0).all()
        assert (found["scale"] >= bounds[0] - 1e-6).all()
        assert (found["scale"] <= bounds[1] + 1e-6).all()
    expected = urnet_jax.load(measured)(images[np.arange(36) % 20], scale=0.3).classes
    np.testing.assert_array_equal(found["classes"].ravel(), expected)
    # What is due at once cannot be in time.
    found, _ = serving_engine.replay(str(measured), "bending", 1e-6, (0.0, 1.0), plan)
    assert (found["status"] == 503).all() and np.isnan(found["latency"]).all()
