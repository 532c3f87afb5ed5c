"""Checkpoints that are damaged or half there: what is read, what a run does, what is left alone."""

import json
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest

from helpers.folders import contents
from urnet_jax.errors import UserError
from urnet_jax.runs import checkpoint
from urnet_jax.runs.checkpoint import Checkpointer
from urnet_jax.runs.load import load_network
from urnet_jax.train import loop


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
        lambda: load_network(workdir)[0],
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
    loop.train_and_evaluate(tiny(), workdir)
    printed, errors = capsys.readouterr()
    assert printed.startswith("Going on from step 28: step 10 of phase joint.\n")
    assert errors.startswith(f"warning: The checkpoint {newest} cannot be read (")
    assert errors.endswith(f"): it was moved to {workdir / 'damaged' / '29'}.\n")
    assert contents(workdir / "damaged" / "29") == damaged
    found, expected = (load_network(run)[1:] for run in (workdir, finished))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_second_damage_does_not_replace_the_first(workdir, newest, tiny):
    for _ in range(2):
        change_a_byte(newest)
        loop.train_and_evaluate(tiny(), workdir)
    assert {path.name for path in (workdir / "damaged").iterdir()} == {"29", "29.2"}


def test_where_all_are_damaged_evaluation_is_one_sentence(workdir, newest, capsys):
    for folder in (newest, newest.with_name("28")):
        remove_meta(folder)
    with pytest.raises(UserError, match=f"The checkpoint {newest} cannot be read"):
        load_network(workdir)
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


def truncate_all_arrays(newest):
    """One file might hold nothing but the optimiser's state, which a network does without."""
    for file in (newest / "state").glob("**/d/*"):
        file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize("damage", [truncate_all_arrays, remove_state])
def test_a_damaged_state_is_one_sentence_without_checksums_too(damage, workdir, newest):
    (newest / "checksums.json").unlink()
    damage(newest)
    with pytest.raises(UserError) as error:
        load_network(workdir)
    sentence = str(error.value)
    assert sentence.startswith(f"The checkpoint {newest} cannot be read (")
    assert sentence.endswith("or start in a new workdir.")
    assert "\n" not in sentence and "0x" not in sentence


@pytest.mark.parametrize("damage", [garble_meta, list_as_meta, config_without_data, another_phase])
def test_a_damaged_meta_shows_without_checksums_too(damage, workdir, newest, capsys):
    (newest / "checksums.json").unlink()
    damage(newest)
    assert load_network(workdir)[0].step == 28
    assert f"warning: The checkpoint {newest} cannot be read (" in capsys.readouterr().err


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


def test_where_all_checkpoints_are_damaged_nothing_is_changed(workdir, tiny):
    for step in checkpoint.steps(workdir):
        change_a_byte(workdir / "checkpoints" / str(step))
    before = contents(workdir)
    message = f"Every checkpoint of the workdir {workdir} is damaged: The checkpoint .*29 cannot be"
    with pytest.raises(UserError, match=message):
        loop.train_and_evaluate(tiny(), workdir)
    with pytest.raises(UserError, match=message):
        load_network(workdir)
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
