import json

import pytest

from benchmarks import crash


@pytest.mark.slow
def test_a_run_that_is_killed_five_times_ends_bit_for_bit_the_same(tmp_path, capsys):
    crash.main(["crash.py", "--kills=5", f"--output={tmp_path}"])
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text())
    assert record["kills"] == len(record["rows"]) == 5 and record["identical"]
    assert record["while_saving"] >= 2
    assert "5 kills" in capsys.readouterr().out


def test_a_difference_is_found(finished, tiny, tmp_path):
    from urnet_jax.train import loop

    loop.train_and_evaluate(tiny({"seed": 1}), tmp_path)
    with pytest.raises(RuntimeError, match="the killed run ended"):
        crash._compare(finished, tmp_path)
