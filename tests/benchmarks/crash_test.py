import json
import shutil

import pytest

from benchmarks import crash
from helpers.variables import init_variables
from urnet_jax.runs import checkpoint
from urnet_jax.runs.checkpoint import Checkpointer
from urnet_jax.train import state


@pytest.mark.slow
def test_a_run_that_is_killed_five_times_ends_bit_for_bit_the_same(tmp_path, capsys):
    crash.main(["crash.py", "--kills=5", f"--output={tmp_path}"])
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text())
    assert record["kills"] == len(record["rows"]) == 5 and record["identical"]
    assert record["while_saving"] >= 2
    assert "5 kills" in capsys.readouterr().out


def test_a_run_does_not_differ_from_its_copy(finished, workdir):
    crash._compare(finished, workdir)


def test_an_earlier_end_is_found(finished, workdir, newest):
    shutil.rmtree(newest)
    with pytest.raises(RuntimeError, match="the killed run ended as "):
        crash._compare(finished, workdir)


def test_another_loss_is_found(finished, workdir):
    file = workdir / "metrics.jsonl"
    first, *others = file.read_text().splitlines()
    changed = json.dumps(json.loads(first) | {"loss": 1.5})
    file.write_text("\n".join([changed, *others]) + "\n")
    with pytest.raises(RuntimeError, match="the killed run wrote other losses"):
        crash._compare(finished, workdir)


def test_other_parameters_are_found(finished, tmp_path):
    meta = checkpoint.newest_meta(finished)
    assert meta is not None
    begun = state.begin_phase(
        *init_variables(meta.config), meta.config, meta.phase, meta.steps_per_epoch, meta.step
    )
    checkpointer = Checkpointer(tmp_path, keep=1)
    checkpointer.save(begun, meta)
    checkpointer.close()
    with pytest.raises(RuntimeError, match="the killed run ended with other parameters"):
        crash._compare(finished, tmp_path)
