import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from helpers.folders import contents
from urnet_jax.errors import UserError
from urnet_jax.evaluate import calibration, inspection, job
from urnet_jax.evaluate.calibration import bisected, calibrate_workdir
from urnet_jax.runs import calibration as kept
from urnet_jax.runs import export
from urnet_jax.runs.calibration import Calibration
from urnet_jax.runs.load import load_network
from urnet_jax.train import loop

SCALES = (0.2, 0.5, 0.8, 1.0)


def test_bisection_finds_where_a_rising_share_is_what_is_wanted():
    wanted = np.array([0.1, 0.35, 0.5, 0.95])
    asked = []

    def shares(scales, offsets):
        asked.extend(scales)
        return 1 / (1 + np.exp(-2 * (offsets - 0.7)))

    offsets, found, before = bisected(shares, wanted, 10.0)
    np.testing.assert_allclose(offsets, 0.7 + np.log(wanted / (1 - wanted)) / 2, atol=0.005)
    # What is met to a twentieth of a point is not asked for again, and none lies far from 0.
    assert len(asked) <= 4 * 9
    np.testing.assert_allclose(found, shares(wanted, offsets))
    np.testing.assert_allclose(before, shares(wanted, np.zeros(4)))


def test_what_cannot_be_reached_is_come_near_to_and_not_overdone():
    """Shares from 0.3 to 1 in steps, as whole blocks make them."""

    def shares(_, offsets):
        return np.clip(np.floor(offsets * 2) / 10 + 0.6, 0.3, 1.0)

    offsets, found, _ = bisected(shares, np.array([0.0, 0.64, 0.66, 1.0]), 8.0)
    np.testing.assert_allclose(found, [0.3, 0.6, 0.7, 1.0])
    # The nearest to 0 that does it: 0, from 0.5 on, from 2 on.
    np.testing.assert_allclose(offsets[1:], [0.0, 0.5, 2.0], atol=0.01)
    assert offsets[0] < -1
    # Where it is known that there is no less, the nearest offset that closes all is looked for:
    # here all is closed below -1.
    offsets, found, _ = bisected(shares, np.array([0.0, 0.3, 0.5]), 8.0, least=0.3)
    np.testing.assert_allclose(found, [0.3, 0.3, 0.5])
    np.testing.assert_allclose(offsets, [-1.0, -1.0, -0.5], atol=0.01)


def test_it_ends_whatever_the_shares_are():
    rng = np.random.default_rng(0)
    asked = []

    def shares(scales, offsets):
        asked.append(len(scales))
        return rng.choice([0.2, 0.4, 0.40001, 0.7], len(scales))

    for _ in range(200):
        bisected(shares, np.array([0.2, 0.3, 0.4, 0.6, 1.0]), 30.0, least=0.2)
    assert len(asked) < 200 * 20


def test_it_is_never_worse_than_no_offset():
    falling = lambda _, offsets: 0.5 - 0.02 * offsets  # noqa: E731
    offsets, found, _ = bisected(falling, np.array([0.5, 0.52]), 8.0)
    assert offsets[0] == 0 and found[0] == 0.5
    assert abs(found[1] - 0.52) < 0.02 + 1e-9


@pytest.fixture(scope="module")
def calibrated(finished, tmp_path_factory):
    """A copy of the finished run, calibrated on 200 of its training images."""
    workdir = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(finished, workdir)
    return workdir, calibrate_workdir(workdir, scales=SCALES, images=200, progress=False)


def test_s_is_the_share_of_flops_afterwards(calibrated, tmp_path):
    workdir, found = calibrated
    assert found.scales == SCALES and found.images == found.images_unseen == 200
    before, now = (
        np.abs(np.array(shares) - SCALES).mean() for shares in (found.shares_before, found.shares)
    )
    assert now < before and now < 0.02
    with_it = job.evaluate_workdir(workdir, scales=SCALES, output=tmp_path / "with")
    without = job.evaluate_workdir(
        workdir, scales=SCALES, output=tmp_path / "without", calibrated=False
    )
    error, was = (
        np.abs(summary["flops_share"].to_numpy() - SCALES).mean() for summary in (with_it, without)
    )
    assert error < was and error < 0.04  # 360 images of the test split, three blocks
    record = json.loads((tmp_path / "with" / "eval.json").read_text())
    assert record["calibration"]["images"] == 200 and record["calibration"]["split"] == "train"
    assert "calibration" not in json.loads((tmp_path / "without" / "eval.json").read_text())


def test_what_it_says_of_itself_is_so(calibrated):
    """The shares that it records are those that its offsets give on its images."""
    workdir, found = calibrated
    run = inspection.load(workdir)
    assert run.calibration == found
    fitted, unseen = calibration.halves(run, 200)
    assert fitted.numbers is not None and unseen.numbers is not None
    assert not np.intersect1d(fitted.numbers, unseen.numbers).size
    middle = (0.35, 0.65, 0.9)
    for split, scales, shares in (
        (fitted, SCALES, found.shares),
        (unseen, SCALES, found.shares_unseen),
        (unseen, middle, found.shares_between),
    ):
        evaluation = run.evaluate(scales, split)
        used = evaluation.flops.mean(axis=1) / evaluation.full_flops
        np.testing.assert_allclose(used, shares, rtol=1e-6)
    assert found.error_between == pytest.approx(
        np.abs(np.array(found.shares_between) - middle).mean()
    )
    assert found.error == pytest.approx(np.abs(np.array(found.shares_unseen) - SCALES).mean())


def test_the_offset_of_the_whole_network_is_the_edge_and_its_use_has_some_to_spare(calibrated):
    workdir, found = calibrated
    run = inspection.load(workdir)
    fitted, _ = calibration.halves(run, 200)
    edge = found.offsets[-1]
    assert found.scales[-1] == 1 and found.offset(1.0) == pytest.approx(edge + kept.SPARE)

    def share(offset: float) -> float:
        moved = dataclasses.replace(found, offsets=(*found.offsets[:-1], offset - kept.SPARE))
        whole = dataclasses.replace(run, calibration=moved).evaluate((1.0,), fitted)
        return float(whole.flops.mean() / whole.full_flops)

    assert edge > 0, "all is open without an offset, so that this shows nothing"
    assert share(edge) == 1 > share(edge - 3 * calibration.FINE)


def test_inspection_and_evaluation_agree(calibrated, tmp_path):
    workdir, _ = calibrated
    job.evaluate_workdir(workdir, scales=SCALES, output=tmp_path)
    with np.load(tmp_path / "eval_samples.npz") as samples:
        expected = samples["gates"]
    found = inspection.load(workdir).evaluate(SCALES)
    np.testing.assert_array_equal(found.gates, expected)
    # A gate is open where its logit, the offset included, is 0 or more.
    assert found.gate_logits is not None
    np.testing.assert_array_equal(found.gate_logits >= 0, expected == 1)


def test_the_checkpoint_is_whole_and_its_weights_untouched(calibrated, finished):
    workdir, _ = calibrated
    meta, *variables = load_network(workdir)
    _, *expected = load_network(finished)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    held, before = contents(workdir), contents(finished)
    added = held.keys() - before.keys()
    changed = {name for name in before if held[name] != before[name]}
    assert {str(name) for name in changed} <= {f"/checkpoints/{meta.step}/checksums.json"}
    assert {str(path) for path in added} == {f"/checkpoints/{meta.step}/calibration.json"}


def test_an_export_says_that_it_is_left_behind(calibrated, tmp_path, capsys):
    export.export_workdir(calibrated[0], tmp_path / "x.safetensors", "newest")
    assert "Its calibration is not in the file" in capsys.readouterr().out


def test_again_it_finds_the_same(calibrated):
    workdir, found = calibrated
    again = calibrate_workdir(workdir, scales=SCALES, images=200, progress=False)
    assert dataclasses.replace(again, about={}) == dataclasses.replace(found, about={})


def test_between_two_scales_it_is_interpolated():
    given = Calibration((0.2, 0.6), (-1.0, 1.0), (0, 0), (0, 0), (0, 0), 1, 1)
    np.testing.assert_allclose(given.offset([0.0, 0.2, 0.3, 0.6, 0.9]), [-1, -1, -0.5, 1, 1])
    # S = 1 has some to spare.
    assert given.offset(1.0) == 2


def test_it_says_where_it_was_not_calibrated(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "run")
    calibrate_workdir(workdir, scales=(0.4, 0.8), images=50, progress=False)
    capsys.readouterr()
    job.evaluate_workdir(workdir, scales=(0.2, 0.6, 1.0), output=tmp_path / "out")
    printed = capsys.readouterr().out
    assert "Mind: outside of what was calibrated: S = 0.2, with" in printed
    assert "comes no nearer" not in printed


def test_it_says_what_runs_whatever_is_asked_for(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "run")
    for scales, said in (((0.0, 0.5), True), ((0.5,), False)):
        calibrate_workdir(workdir, scales=scales, images=50, progress=False)
        assert ("% always runs, whatever the gates do" in capsys.readouterr().out) is said


def calibration_json(**changes):
    fields = {"scales": [0.2, 1.0], "offsets": [0.5, 1.0], "images": 1, "images_unseen": 1}
    fields |= {name: [0.2, 1.0] for name in ("shares_before", "shares", "shares_unseen")}
    return json.dumps(fields | changes)


def test_what_is_whole_is_read(calibrated, tmp_path):
    workdir = shutil.copytree(calibrated[0], tmp_path / "run")
    step = load_network(workdir).meta.step
    (workdir / "checkpoints" / str(step) / "checksums.json").unlink()
    (workdir / "checkpoints" / str(step) / kept.FILE).write_text(calibration_json())
    found = kept.read(workdir, step)
    assert found is not None and found.offsets == (0.5, 1.0) and found.shares_between == ()


@pytest.mark.parametrize(
    "content",
    [
        "garbage", "[1]", "{}", '{"scales": [0.2]}',
        calibration_json(offsets=[float("nan"), 0.0]),
        calibration_json(scales=[1.0, 0.2]),
        calibration_json(scales=[0.2, 1.5]),
        calibration_json(offsets=[0.5]),
        calibration_json(shares=[0.2]),
        calibration_json(shares_between=[0.2, 0.4]),
        calibration_json(scales=[], offsets=[], shares_before=[], shares=[], shares_unseen=[]),
    ],
)  # fmt: skip
def test_what_is_no_calibration_is_one_sentence(content, calibrated, tmp_path):
    workdir = shutil.copytree(calibrated[0], tmp_path / "run")
    step = load_network(workdir).meta.step
    (workdir / "checkpoints" / str(step) / "checksums.json").unlink()
    (workdir / "checkpoints" / str(step) / kept.FILE).write_text(content)
    with pytest.raises(UserError, match="is not a calibration: remove it, or run urnet calibrate"):
        kept.read(workdir, step)


def test_a_calibration_that_is_lost_or_damaged_costs_nothing_else(calibrated, tmp_path, capsys):
    workdir = shutil.copytree(calibrated[0], tmp_path / "run")
    step = load_network(workdir).meta.step
    path = workdir / "checkpoints" / str(step) / kept.FILE
    path.write_text(path.read_text().replace("0.2", "0.3"))
    with pytest.raises(UserError, match="is not as it was written: remove it, or run urnet cal"):
        inspection.load(workdir)
    assert inspection.load(workdir, calibrated=False).meta.step == step
    again = calibrate_workdir(workdir, scales=(0.5,), images=50, progress=False)
    assert again.scales == (0.5, 1.0) and inspection.load(workdir).calibration == again
    path.unlink()
    capsys.readouterr()
    assert inspection.load(workdir).calibration is None
    assert f"warning: {path} is gone: urnet calibrate makes it anew." in capsys.readouterr().err


def test_a_plain_network_has_nothing_to_calibrate(tiny, tmp_path):
    config = tiny({"model.gated": False, "pretrain.epochs": 0.1, "joint.epochs": 0.0})
    loop.train_and_evaluate(config, tmp_path / "run")
    with pytest.raises(UserError, match="of a plain network, which has no trained gates"):
        calibrate_workdir(tmp_path / "run")


def test_the_command_prints_a_table_and_refuses_what_it_cannot_use(
    finished, tiny, tmp_path, capsys
):
    workdir = shutil.copytree(finished, tmp_path / "run")
    command = [sys.executable, "-m", "urnet_jax", "calibrate", f"--workdir={workdir}"]
    asked = [*command, "--images=50", "--scales=0.4,1"]
    done = subprocess.run(
        [*asked, "--batch_sizes=1,2"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Share of FLOPs on 50 images of digits train" in done.stdout
    assert "Mean distance from S: " in done.stdout
    *_, calibration, profile = [line for line in done.stdout.splitlines() if line.endswith("json")]
    assert calibration.endswith("calibration.json") and profile.endswith("profile.json")
    assert "milliseconds for batches of so many" in done.stdout
    done = subprocess.run(
        [*asked, "--batch_sizes=none"], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == calibration
    assert "Removed the times that were measured: they were of the offsets before." in done.stdout
    assert not pathlib.Path(profile).exists()  # It was of the calibration before.
    loop.train_and_evaluate(tiny(), workdir)
    assert "Its calibration is of that step alone" in capsys.readouterr().out
    for flag, sentence in (
        ("--images=0", "--images is '0'"),
        ("--scales=2", "--scales is '2'; expected numbers from 0 to 1"),
        ("--step=first", "--step is 'first'"),
    ):
        refused = subprocess.run([*command, flag], capture_output=True, text=True, timeout=300)
        assert refused.returncode == 2 and sentence in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
