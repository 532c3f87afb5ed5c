import json
import pathlib
import shutil

import jax
import pytest

from helpers.train_runs import (
    MESH,
    assert_identical,
    assert_same_run,
    lines,
    newest,
    newest_state,
    roll_back,
)  # fmt: skip
from helpers.variables import init_variables, split_gates
from urnet_jax import config as config_lib
from urnet_jax.errors import UserError
from urnet_jax.evaluate import job
from urnet_jax.phases import PHASES
from urnet_jax.runs import writers
from urnet_jax.runs.load import load_network
from urnet_jax.train import loop
from urnet_jax.train.start import start_phase
from urnet_jax.xla import sharding

STEPS_PER_EPOCH = 1437 / 64


def test_lines_come_at_the_configured_steps(finished):
    """Evaluations every 4 steps of a phase and at its end; losses also every 3, and at a save."""
    evaluated = [(4, "pretrain"), (8, "pretrain"), (11, "pretrain"), (15, "gates"), (18, "gates")]
    evaluated += [(22, "joint"), (26, "joint"), (29, "joint")]
    found = [(line["step"], line["phase"], line["scale"]) for line in lines(finished, "eval")]
    scales = {"pretrain": (1.0,), "gates": (0.2, 1.0), "joint": (0.2, 1.0)}
    assert found == [(step, phase, s) for step, phase in evaluated for s in scales[phase]]
    steps = [line["step"] for line in lines(finished, "train")]
    assert steps == [2, 3, 4, 6, 8, 9, 10, 11, 13, 14, 15, 17, 18, *(n + 18 for n in
                     (2, 3, 4, 6, 8, 9, 10, 11))]  # fmt: skip
    losses = {line["phase"]: line["loss"] for line in lines(finished, "train")}
    assert losses["pretrain"] < lines(finished, "train")[0]["loss"]


def test_a_finished_run_is_left_as_it_is(finished, tiny, tmp_path, capsys):
    workdir = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    loop.train_and_evaluate(tiny(), workdir)
    printed = "Going on from step 29: step 11 of phase joint.\nPhase joint is finished.\n"
    assert capsys.readouterr().out == printed
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_going_on_between_phases_with_a_longer_config(finished, tiny, tmp_path, capsys):
    shorter = tiny({"gates.epochs": 0.0, "joint.epochs": 0.0})
    loop.train_and_evaluate(shorter, tmp_path)
    assert newest(tmp_path).phase == "pretrain"
    assert json.loads((tmp_path / "config.json").read_text())["joint"]["epochs"] == 0.0
    capsys.readouterr()
    loop.train_and_evaluate(tiny(), tmp_path)
    assert capsys.readouterr().out.splitlines()[:4] == [
        "Going on from step 11: step 11 of phase pretrain.",
        "config.gates.epochs was 0.0 and is 0.3 from here on.",
        "config.joint.epochs was 0.0 and is 0.5 from here on.",
        "Phase pretrain is finished.",
    ]
    assert config_lib.from_json((tmp_path / "config.json").read_text()) == tiny()
    assert_same_run(tmp_path, finished)


def test_the_loop_moves_nothing_between_host_and_device_unasked(tiny, tmp_path, monkeypatch):
    """All runs of these tests train under JAX's transfer guard; this one breaks its rule."""
    monkeypatch.setattr(sharding, "global_batch", lambda local, mesh: local)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        loop.train_and_evaluate(tiny(), tmp_path)


def test_phases_that_evaluate_alike_share_one_compiled_evaluation(tiny, tmp_path):
    loop._eval_step.cache_clear()
    loop.train_and_evaluate(tiny({"eval.every_epochs": 0.0}), tmp_path)
    assert {line["phase"] for line in lines(tmp_path, "eval")} == set(PHASES)
    assert loop._eval_step.cache_info().misses == 2  # without the network's own gates, and with


def test_the_command_line_reaches_config_and_checkpoint(finished, tiny):
    assert config_lib.from_json((finished / "config.json").read_text()) == tiny()
    assert newest(finished).config == tiny()
    assert tiny() != config_lib.load("digits")


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory) -> pathlib.Path:
    """A run of the plain network."""
    workdir = tmp_path_factory.mktemp("plain")
    fields = {"model.gated": False, "pretrain.epochs": 0.1, "joint.epochs": 0.1}
    loop.train_and_evaluate(tiny(fields), workdir)
    return workdir


def test_a_plain_network_has_no_phase_gates(plain):
    phases = [(line["step"], line["phase"]) for line in lines(plain, "eval")]
    assert phases == [(2, "pretrain"), (4, "joint")]
    assert {line["usage"] for line in lines(plain, "train")} == {1.0}
    assert {line["scale_loss"] for line in lines(plain, "train")} == {0.0}


def test_gates_begin_from_a_plain_run_and_leave_it_as_it_was(plain, tiny, tmp_path):
    fields = {"pretrain.epochs": 0.0, "joint.epochs": 0.0, "gates.init_from": str(plain)}
    config = tiny(fields)
    loop.train_and_evaluate(config, tmp_path)
    before, after = newest_state(plain), newest_state(tmp_path)
    assert (newest(tmp_path).phase, int(after.step)) == ("gates", 7)
    gates, backbone = split_gates(after.params)
    assert_identical(backbone, before.params)
    assert_identical(after.batch_stats, before.batch_stats)
    initial, _ = split_gates(init_variables(config)[0])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), gates, initial)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_begins_from_another_run(phase, plain, finished, tiny):
    gated, ungated = newest_state(finished), newest_state(plain)
    for source, source_state in [(finished, gated), (plain, ungated)]:
        config = tiny({f"{phase}.init_from": str(source)})
        begun = start_phase(config, phase, STEPS_PER_EPOCH, gated, MESH)
        _, backbone = split_gates(begun.params)
        _, expected = split_gates(source_state.params)
        assert_identical(backbone, expected)
        assert_identical(begun.batch_stats, source_state.batch_stats)
        gates, _ = split_gates(begun.params)
        assert_identical(gates, split_gates(gated.params)[0])
        assert (int(begun.step), int(begun.phase_step)) == (29, 0)


@pytest.mark.parametrize("kind", ["block", "external"])
def test_gates_that_another_run_has_not_trained_begin_anew(kind, finished, tiny, tmp_path):
    fields = {"model.gate_network": kind, "gates.epochs": 0.0, "joint.epochs": 0.0}
    short = tiny(fields | {"pretrain.epochs": 0.1, "model.gate_bias": 3.0})
    loop.train_and_evaluate(short, tmp_path / "short")
    config = tiny(fields | {"gates.init_from": str(tmp_path / "short"), "model.gate_bias": -1.0})
    begun = start_phase(config, "gates", STEPS_PER_EPOCH, None, MESH)
    source = newest_state(tmp_path / "short")
    own = init_variables(config)
    trees = (begun.params, begun.batch_stats), own, (source.params, source.batch_stats)
    for tree, fresh, other in zip(*trees, strict=True):
        gates, backbone = split_gates(tree)
        assert_identical(gates, split_gates(fresh)[0])
        assert_identical(backbone, split_gates(other)[1])
    if kind == "block":  # Gates that were trained before phase pretrain are not lost.
        short.pretrain.init_from = str(finished)
        loop.train_and_evaluate(short, tmp_path / "again")
        config.gates.init_from = str(tmp_path / "again")
        begun = start_phase(config, "gates", STEPS_PER_EPOCH, None, MESH)
        gates, _ = split_gates(begun.params)
        trained, _ = split_gates(newest_state(finished).params)
        assert_identical(gates, trained)


def test_a_plain_network_begins_from_a_gated_run(finished, tiny):
    config = tiny({"model.gated": False, "joint.init_from": str(finished)})
    begun = start_phase(config, "joint", STEPS_PER_EPOCH, None, MESH)
    _, backbone = split_gates(newest_state(finished).params)
    assert_identical(begun.params, backbone)


def test_a_run_goes_on_without_the_run_that_a_phase_behind_it_began_from(
    finished, tiny, tmp_path, capsys
):
    source = pathlib.Path(shutil.copytree(finished, tmp_path / "gone"))
    short = {"pretrain.epochs": 0.1, "gates.epochs": 0.0, "joint.epochs": 0.0}
    config = tiny(short | {"pretrain.init_from": str(source)})
    loop.train_and_evaluate(config, tmp_path / "run")
    shutil.rmtree(source)
    capsys.readouterr()
    loop.train_and_evaluate(config, tmp_path / "run")
    assert "Phase pretrain is finished." in capsys.readouterr().out


@pytest.fixture(scope="module")
def averaged(tiny, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("averaged")
    loop.train_and_evaluate(tiny(AVERAGED), workdir)
    return workdir


AVERAGED = {
    "gates.epochs": 0.0,
    "joint.epochs": 0.0,
    "pretrain.ema_decay": 0.5,
    "checkpoint.keep": 9,
    "log.tensorboard": True,
}


def test_averaged_parameters_are_those_that_are_evaluated(averaged, tiny):
    final = newest_state(averaged)
    assert final.ema_params is not None
    average = final.ema_params
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), final.params, average.params)
    assert all(jax.tree.leaves(split_gates(differs)[1]))
    assert not any(jax.tree.leaves(split_gates(differs)[0]))
    _, *loaded = load_network(averaged)
    assert_identical(tuple(loaded), tuple(average))
    (row,) = job.evaluate_workdir(averaged).to_dict("records")
    on_the_way = lines(averaged, "eval")[-1]
    assert {name: on_the_way[name] for name in row} == pytest.approx(row)
    begun = start_phase(tiny(), "joint", STEPS_PER_EPOCH, final, MESH)
    assert_identical((begun.params, begun.batch_stats), tuple(average))
    assert begun.ema_params is None


def test_averaging_goes_on_exactly(averaged, tiny, tmp_path):
    workdir = pathlib.Path(shutil.copytree(averaged, tmp_path / "run"))
    roll_back(workdir, 6)
    loop.train_and_evaluate(tiny(AVERAGED), workdir)
    assert_same_run(workdir, averaged)


def test_tensorboard_files_are_written(averaged):
    (events,) = (averaged / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/loss" in content and b"eval/top1_percent_at_1" in content


def test_no_phase_with_a_length_is_one_sentence(tiny, tmp_path):
    none = {"pretrain.epochs": 0.0, "gates.epochs": 0.0, "joint.epochs": 0.0}
    gates_only = none | {"gates.epochs": 1.0, "model.gated": False}
    for fields in (none, gates_only):
        with pytest.raises(UserError) as error:
            loop.train_and_evaluate(tiny(fields), tmp_path / "run")
        assert str(error.value) == (
            "No phase has a length: set pretrain.epochs, gates.epochs or joint.epochs above 0 "
            "(a plain network has no phase gates)."
        )
    assert not (tmp_path / "run").exists()


def test_metrics_are_whole_lines_in_order(finished):
    every = writers.read(finished)
    assert len(every) == len((finished / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in every] == sorted(line["step"] for line in every)
    keys = [(line["kind"], line["step"], line.get("scale", 0)) for line in every]
    assert len(set(keys)) == len(keys)


def test_the_shipped_recipe_begins_with_usage_near_s(tmp_path):
    """configs/digits.py as it is, but for its size: S is met from the first steps on."""
    config = config_lib.load("digits")
    config.update_from_flattened_dict({
        "joint.epochs": 0.3, "eval.scales": (0.2, 0.5, 1.0), "eval.every_epochs": 0.0,
        "log.every_steps": 3, "checkpoint.every_epochs": 0.0,
    })  # fmt: skip
    loop.train_and_evaluate(config, tmp_path / "run")
    shares = [line["flops_share"] for line in lines(tmp_path / "run", "eval")]
    assert shares == pytest.approx([0.2, 0.5, 1.0], abs=0.12)  # a block is 12 % of the FLOPs
    trained = lines(tmp_path / "run", "train")
    assert all(line["distill_loss"] > 0 for line in trained)
    assert any(line["top1_whole"] != line["top1"] for line in trained)  # two passes
