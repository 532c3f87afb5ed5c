"""The benchmark of dense prediction, on a network that runs in milliseconds."""

import json

import pytest

from benchmarks import dense, inference_networks, results
from urnet_jax.errors import UserError
from urnet_jax.nets.dense.architecture import ChannelSegmenter

TINY = ChannelSegmenter(
    "imagenet", 18, 5, (16, 24), width=4, shortcut="B", gate_group=4, gate_blocks=True
)


@pytest.fixture
def tiny_networks(monkeypatch):
    monkeypatch.setattr(inference_networks, "DENSE_NETWORKS", {"pspnet18 both/64": TINY})
    monkeypatch.setattr(results, "MOST_BUSY", 1.0)  # whatever else runs beside the tests


@pytest.mark.usefixtures("tiny_networks")
def test_a_network_is_timed_checked_and_drawn_once(tmp_path, capsys):
    arguments = ("--batch_sizes=1,2", "--usages=0.5,1", "--executions=filters,pieces",
                 "--repeats=2", f"--output={tmp_path}")  # fmt: skip
    record = json.loads(dense.run(dense.parse(["dense.py", *arguments])).read_text())
    assert "pspnet18 both/64, float32" in capsys.readouterr().out
    assert len(record["rows"]) == 2 * (1 + 2 * 4)
    checked = [row for row in record["rows"] if row["gates"] != "all on"]
    assert max(row["relative_difference"] for row in checked) <= 1e-5
    half = [row for row in checked if row["usage"] == 0.5]
    assert all(0.1 < row["flops_share"] < 0.95 for row in half)
    assert len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--networks=vgg"], "--networks is 'vgg'; expected one or more of pspnet18"),
        (["--usages=2"], "--usages is '2'; expected numbers from 0 to 1"),
        (["--batch_sizes=0"], "--batch_sizes is '0'; expected numbers from 1"),
    ],
)
def test_what_cannot_be_timed_is_one_sentence(flags, sentence):
    with pytest.raises(UserError) as error:
        dense.parse(["dense.py", *flags])
    assert sentence in str(error.value)


def test_the_shipped_networks_differ_in_their_gates_alone():
    known = inference_networks.found("pspnet18 plain")
    for name in ("pspnet18 channels/64", "pspnet18 both/64"):
        other = inference_networks.found(name)
        assert other.stages == known.stages and other.head_macs == known.head_macs
