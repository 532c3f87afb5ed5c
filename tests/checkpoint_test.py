import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import time
from typing import Any

import jax
import numpy as np
import pytest

from urnet_jax import checkpoint, checksums, resume, state, training, writers
from urnet_jax.checkpoint import Checkpointer
from urnet_jax.errors import UserError


def contents(folder: pathlib.Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {name.removeprefix(str(folder)): digest for name, digest in digests.items()}


@pytest.fixture
def workdir(finished, tmp_path):
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def newest(workdir):
    return workdir / "checkpoints" / "29"


def largest(folder: pathlib.Path) -> pathlib.Path:
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def truncate_largest(newest):
    file = largest(newest / "state")
    file.write_bytes(file.read_bytes()[:1000])
    return file


def change_a_byte(newest):
    file = largest(newest / "state")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


def remove_weights(newest):
    (file,) = (newest / "state" / "d").iterdir()
    file.unlink()
    return file


def remove_meta(newest):
    (newest / "meta" / "metadata").unlink()
    return newest / "meta" / "metadata"


def garble_meta(newest):
    (newest / "meta" / "metadata").write_text("garbage")
    return newest / "meta" / "metadata"


def garble_checksums(newest):
    (newest / "checksums.json").write_text("garbage")
    return newest / "checksums.json"


DAMAGES = [truncate_largest, change_a_byte, remove_weights, remove_meta, garble_meta]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_read(damage, workdir, newest, capsys):
    file = damage(newest)
    state_now = "missing" if "remove" in damage.__name__ else "not as it was written"
    before = contents(workdir)
    for read in (
        lambda: checkpoint.load_for_evaluation(workdir)[0],
        lambda: checkpoint.newest_meta(workdir),
    ):
        meta = read()
        assert meta is not None and meta.step == 28
        assert capsys.readouterr().err == (
            f"warning: The checkpoint {newest} cannot be read ({file.relative_to(newest)} is "
            f"{state_now}); move that folder away to go on from the one before it, or start in a "
            "new workdir.\n"
        )
    assert contents(workdir) == before


@pytest.mark.parametrize("damage", [*DAMAGES, garble_checksums])
def test_a_run_sets_a_damaged_checkpoint_aside_and_goes_on(
    damage, workdir, newest, finished, tiny, capsys
):
    damage(newest)
    damaged = contents(newest)
    training.train_and_evaluate(tiny(), workdir)
    printed, errors = capsys.readouterr()
    assert printed.startswith("Going on from step 28: step 10 of phase joint.\n")
    assert errors.startswith(f"warning: The checkpoint {newest} cannot be read (")
    assert errors.endswith(f"): it was moved to {workdir / 'damaged' / '29'}.\n")
    assert contents(workdir / "damaged" / "29") == damaged
    found, expected = (checkpoint.load_for_evaluation(run)[1:] for run in (workdir, finished))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_second_damage_does_not_replace_the_first(workdir, newest, tiny):
    for _ in range(2):
        change_a_byte(newest)
        training.train_and_evaluate(tiny(), workdir)
    assert {path.name for path in (workdir / "damaged").iterdir()} == {"29", "29.2"}


def test_where_all_are_damaged_evaluation_is_one_sentence(workdir, newest, capsys):
    for folder in (newest, newest.with_name("28")):
        remove_meta(folder)
    with pytest.raises(UserError, match=f"The checkpoint {newest} cannot be read"):
        checkpoint.load_for_evaluation(workdir)
    assert len(capsys.readouterr().err.splitlines()) == 0


def config_without_data(newest):
    file = newest / "meta" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config": "{}"}))


def another_phase(newest):
    file = newest / "meta" / "metadata"
    file.write_text(file.read_text().replace('"phase": "joint"', '"phase": "last"'))


def list_as_meta(newest):
    (newest / "meta" / "metadata").write_text("[1]")


def remove_state(newest):
    shutil.rmtree(newest / "state")


@pytest.mark.parametrize("damage", [truncate_largest, remove_state])
def test_a_damaged_state_is_one_sentence_without_checksums_too(damage, workdir, newest):
    (newest / "checksums.json").unlink()
    damage(newest)
    with pytest.raises(UserError) as error:
        checkpoint.load_for_evaluation(workdir)
    sentence = str(error.value)
    assert sentence.startswith(f"The checkpoint {newest} cannot be read (")
    assert sentence.endswith("or start in a new workdir.")
    assert "\n" not in sentence and "0x" not in sentence


@pytest.mark.parametrize("damage", [garble_meta, list_as_meta, config_without_data, another_phase])
def test_a_damaged_meta_shows_without_checksums_too(damage, workdir, newest, capsys):
    (newest / "checksums.json").unlink()
    damage(newest)
    assert checkpoint.load_for_evaluation(workdir)[0].step == 28
    assert f"warning: The checkpoint {newest} cannot be read (" in capsys.readouterr().err


def test_a_checkpoint_needs_no_checksums(workdir, newest):
    (newest / "checksums.json").unlink()
    assert checkpoint.load_for_evaluation(workdir)[0].step == 29


def test_what_a_kill_left_of_a_save_is_no_checkpoint(workdir, newest):
    unfinished = newest.with_name("31.orbax-checkpoint-tmp")
    shutil.copytree(newest, unfinished)
    meta = checkpoint.newest_meta(workdir)
    assert meta is not None and meta.step == 29
    assert unfinished.exists()  # it may be that of a run which is still going on
    checkpointer = Checkpointer(workdir, keep=2)  # cleans up in another thread
    for _ in range(1000):
        if not unfinished.exists():
            break
        time.sleep(0.01)
    checkpointer.close()
    assert {path.name for path in unfinished.parent.iterdir()} == {"28", "29"}


def test_the_newest_are_kept(finished):
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["28", "29"]


def test_the_best_is_kept_too_and_evaluated(tiny, tmp_path):
    fields = {"checkpoint.keep": 1, "checkpoint.keep_best": 1, "eval.every_epochs": 0.1}
    fields |= {"gates.epochs": 0.0, "joint.epochs": 0.0, "pretrain.learning_rate": 0.3}
    training.train_and_evaluate(tiny(fields), tmp_path)
    scores = {
        line["step"]: line["top1_percent"]
        for line in writers.read(tmp_path)
        if line["kind"] == "eval"
    }
    assert set(scores) == {2, 4, 6, 8, 10, 11}
    best = max(scores, key=lambda step: (scores[step], step))
    assert checkpoint.steps(tmp_path) == sorted({best, 11})
    cases: Any = (("best", best), (best, best), ("newest", 11))
    for which, step in cases:
        meta = checkpoint.load_for_evaluation(tmp_path, which)[0]
        assert (meta.step, meta.top1_percent) == (step, scores[step])
    with pytest.raises(UserError, match=r"holds no checkpoint 3; it holds the steps \d+"):
        checkpoint.load_for_evaluation(tmp_path, 3)


def test_the_best_is_of_the_latest_phase(workdir):
    metas = [checkpoint.read_meta(workdir, step) for step in (28, 29)]
    plain = dataclasses.replace(metas[0], phase="pretrain", top1_percent=99.0)
    joint = dataclasses.replace(metas[0], phase="joint", top1_percent=1.0)
    assert plain.score is not None and joint.score is not None and joint.score > plain.score
    assert dataclasses.replace(plain, top1_percent=None).score is None


def test_a_refused_run_leaves_the_folder_to_the_first(tmp_path):
    workdir = tmp_path / "run"
    with resume.locked(workdir):
        with pytest.raises(UserError, match="Another run is at work"):
            with resume.locked(workdir):
                pass
        assert workdir.exists()
    assert not workdir.exists()


def test_a_run_without_evaluated_checkpoints_has_no_best(workdir):
    for step in checkpoint.steps(workdir):
        file = workdir / "checkpoints" / str(step) / "meta" / "metadata"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"top1_percent": None}))
    with pytest.raises(UserError, match="holds the steps 28, 29, none evaluated"):
        checkpoint.load_for_evaluation(workdir, "best")


def test_meta_tells_of_the_run(finished, tiny):
    meta = checkpoint.newest_meta(finished)
    assert meta is not None
    assert (meta.step, meta.phase, meta.phase_step, meta.phase_steps) == (29, "joint", 11, 11)
    assert meta.steps_per_epoch == 1437 / 64
    assert meta.config == tiny()


def test_what_is_restored_is_what_evaluation_loads(finished):
    meta, params, batch_stats = checkpoint.load_for_evaluation(finished)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = state.abstract_state(meta.config, meta.phase, meta.steps_per_epoch, here)
    checkpointer = Checkpointer(finished)
    restored = checkpointer.restore_state(meta.step, abstract)
    checkpointer.close()
    assert (int(restored.step), int(restored.phase_step)) == (29, 11)
    kernel = params["conv1"]["kernel"]
    assert (kernel == restored.params["conv1"]["kernel"]).all()
    assert (batch_stats["bn1"]["mean"] == restored.batch_stats["bn1"]["mean"]).all()


HOLDS = (
    "The workdir {workdir} holds a checkpoint of a gated ResNet-8 (cifar, width 16, shortcut A) "
    "for 10 classes at 8 px, and the config asks for another ({differing}): choose another "
    "--workdir, or ask for what it holds."
)


@pytest.mark.parametrize(
    ("fields", "differing"),
    [
        ({"model.depth": 14}, "depth 14, not 8"),
        ({"model.gate_reduction": 4}, "gate_reduction 4, not 2"),
        ({"model.gated": False, "model.width": 8}, "width 8, not 16, gated False, not True"),
    ],
)
def test_another_network_is_refused_and_the_checkpoint_left_alone(
    fields, differing, finished, tiny
):
    before = contents(finished)
    with pytest.raises(UserError) as error:
        training.train_and_evaluate(tiny(fields), finished)
    assert str(error.value) == HOLDS.format(workdir=finished, differing=differing)
    assert contents(finished) == before


def test_another_dataset_is_refused(finished, tiny):
    with pytest.raises(UserError) as error:
        training.train_and_evaluate(tiny({"data.name": "cifar10"}), finished)
    assert str(error.value) == (
        f"The workdir {finished} holds a checkpoint of a network for digits, and the config asks "
        "for cifar10: choose another --workdir, or ask for what it holds."
    )


def test_another_optimiser_is_refused_within_a_phase(finished, tiny):
    changed = {"joint.clip_norm": 0.0, "joint.ema_decay": 0.9, "joint.learning_rate": 1.0}
    with pytest.raises(UserError) as error:
        training.train_and_evaluate(tiny(changed), finished)
    assert str(error.value) == (
        f"The workdir {finished} holds a checkpoint of a phase that began with joint.clip_norm "
        "1.0, not 0.0 and joint.ema_decay 0.0, not 0.9: choose another --workdir, or ask for what "
        "it holds."
    )


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_checkpoints_is_one_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        checkpoint.load_for_evaluation(folder)
    assert str(error.value) == (
        f"The workdir {folder} holds no checkpoint; train there first: "
        f"python train.py --workdir={folder}."
    )
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_init_from_must_be_a_run_of_the_same_network(finished, tiny, tmp_path):
    with pytest.raises(UserError) as error:
        resume.check_init_from(tiny({"gates.init_from": str(tmp_path)}), "gates")
    assert str(error.value) == (
        f"gates.init_from is {tmp_path}, which holds no checkpoint; name the workdir of a run."
    )
    for fields, differing in [
        ({"model.depth": 14}, "depth 14, not 8"),
        ({"model.gate_reduction": 4}, "gate_reduction 4, not 2"),
        ({"model.gated": False, "model.width": 8}, "width 8, not 16"),
    ]:
        config = tiny({"joint.init_from": str(finished), **fields})
        with pytest.raises(UserError) as error:
            training.train_and_evaluate(config, tmp_path / "new")
        assert str(error.value) == (
            f"joint.init_from is {finished}, which holds a gated ResNet-8 (cifar, width 16, "
            "shortcut A) for 10 classes at 8 px, and the config asks for another network "
            f"({differing}): name a run of the same network."
        )
    assert not (tmp_path / "new").exists()
    plain = tiny({"joint.init_from": str(finished), "model.gated": False})
    resume.check_init_from(plain, "joint")


def test_a_checkpoint_opens_on_another_device(workdir, newest):
    (newest / "checksums.json").unlink()
    record = newest / "state" / "_sharding"  # where Orbax notes the devices of every array
    here, elsewhere = r"{\"id\": 0}", r"{\"id\": 2048}"
    assert here in record.read_text()
    record.write_text(record.read_text().replace(here, elsewhere))
    assert checkpoint.load_for_evaluation(workdir)[0].step == 29


def test_a_checkpoint_counts_only_once_its_checksums_are_written(workdir, newest, monkeypatch):
    meta = checkpoint.read_meta(workdir, int(newest.name))
    abstract = state.abstract_state(meta.config, meta.phase, meta.steps_per_epoch)
    seen, write = [], checksums.write

    def watched(folder):
        seen.append((folder.name, checkpoint.steps(workdir)))
        write(folder)

    monkeypatch.setattr(checksums, "write", watched)
    with contextlib.closing(Checkpointer(workdir, keep=2)) as checkpointer:
        network = checkpointer.restore_state(meta.step, abstract)
        checkpointer.save(network, dataclasses.replace(meta, step=meta.step + 1))
    ((name, before),) = seen
    assert name.startswith(f"{meta.step + 1}.orbax-checkpoint-tmp")
    assert meta.step + 1 not in before
    folder = newest.with_name(str(meta.step + 1))
    recorded = json.loads((folder / "checksums.json").read_text())
    held = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert held - set(recorded) <= {
        "checksums.json", "_CHECKPOINT_METADATA", "commit_success.txt",
    }  # fmt: skip
    checkpoint.check_files(workdir, meta.step + 1)


def test_where_all_checkpoints_are_damaged_nothing_is_changed(workdir, tiny):
    for step in checkpoint.steps(workdir):
        change_a_byte(workdir / "checkpoints" / str(step))
    before = contents(workdir)
    message = f"Every checkpoint of the workdir {workdir} is damaged: The checkpoint .*29 cannot be"
    with pytest.raises(UserError, match=message):
        training.train_and_evaluate(tiny(), workdir)
    with pytest.raises(UserError, match=message):
        checkpoint.load_for_evaluation(workdir)
    assert contents(workdir) == before


def test_a_checkpoint_whose_removal_was_killed_is_removed(workdir, newest, start, tiny_flags):
    half = newest.with_name("5")
    shutil.copytree(newest.with_name("28"), half)
    (half / "_CHECKPOINT_METADATA").unlink()
    shutil.rmtree(half / "state")
    with start("train.py", "--workdir=run", *tiny_flags, cwd=workdir.parent) as process:
        printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert printed.startswith("Going on from step 29")
    assert checkpoint.steps(workdir) == [28, 29]
