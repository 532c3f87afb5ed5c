import json

import numpy as np
import pytest

from benchmarks import equality, inference_networks
from urnet_jax.errors import UserError
from urnet_jax.nets.architecture import Architecture


@pytest.fixture
def tiny_networks(monkeypatch):
    tiny = Architecture("cifar", 14, 5, image_size=8, width=4, gated=False)
    monkeypatch.setattr(inference_networks, "NETWORKS", {"resnet20": tiny})


def test_executions_equal_dense(tmp_path, tiny_networks):
    values = equality.parse(["equality.py", f"--output={tmp_path}", "--networks=resnet20"])
    values.dtype = ["float32"]
    record = json.loads(equality.run(values).read_text())
    assert [g["group"] for g in record["groups"]] == [
        "resnet20, batch 4, float32", "resnet20, batch 1, float32",
    ]  # fmt: skip
    assert len(record["rows"]) == (len(equality.EXECUTIONS) + 1) * len(equality.SHARES)
    for row in record["rows"]:
        assert row["equal"] and row["flipped_gates"] == 0
        assert max(row["relative_difference"], row["scores_difference"]) < 1e-5
    opened = [r["open_share"] for r in record["rows"][: len(equality.SHARES)]]
    assert opened == sorted(opened) and (opened[0], opened[-1]) == (0, 1)
    assert len(set(opened)) == len(opened)


def test_an_execution_that_differs_is_an_error(tmp_path, tiny_networks, monkeypatch):
    row = {"execution": "compact", "relative_difference": 0.1, "flipped_gates": 2, "equal": False}
    monkeypatch.setattr(equality, "rows", lambda *_: [row])
    arguments = ["equality.py", f"--output={tmp_path}", "--networks=resnet20", "--batch_sizes=4"]
    with pytest.raises(UserError) as error:
        equality.run(equality.parse([*arguments, "--dtype=bfloat16"]))
    assert "resnet20, batch 4, bfloat16, compact is 1.0e-01 from it" in str(error.value)
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["rows"][0]["flipped_gates"] == 2


def test_what_counts_as_equal():
    logits, gates = np.array([[1.0, -2.0]], np.float32), np.array([[1.0, 0.0, 1.0]], np.float32)
    dense = logits, gates, gates - 0.5
    assert equality.compare(dense, dense, 1e-6)["equal"]
    near = equality.compare(dense, (logits + 1e-3, gates, dense[2]), 1e-3)
    assert near["equal"] and near["relative_difference"] == pytest.approx(5e-4, rel=1e-3)
    assert not equality.compare(dense, (logits, gates, dense[2] * 1.1), 1e-2)["equal"]
    flipped = equality.compare(dense, (logits, 1 - gates, dense[2]), 1.0)
    assert flipped["flipped_gates"] == 3 and not flipped["equal"]
    nothing = (logits, gates, 0 * dense[2])
    assert equality.compare(nothing, nothing, 1e-6)["scores_difference"] == 0
    assert not equality.compare(nothing, dense, 1.0)["equal"]
    assert not equality.compare(dense, (logits * np.nan, gates, dense[2]), 1.0)["equal"]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--networks=vgg", "--networks names 'vgg'; expected some of resnet20"),
        ("--dtype=float16", "--dtype names 'float16'; expected some of float32, bfloat16"),
        ("--batch_sizes=two", "--batch_sizes is 'two'; expected whole numbers from 1"),
    ],
)
def test_a_wrong_flag_of_the_comparison(argument, sentence):
    with pytest.raises(UserError, match=sentence):
        equality.parse(["equality.py", argument])
