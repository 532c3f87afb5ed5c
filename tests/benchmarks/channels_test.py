"""The benchmark of channel gates, on networks that run in milliseconds."""

import json
import sys

import numpy as np
import pytest

from benchmarks import channels, inference_cases, inference_networks, results
from urnet_jax.errors import UserError
from urnet_jax.nets.channels.architecture import ChannelGated

BASIC = ChannelGated("cifar", 8, 5, image_size=8, width=8, gate_group=4, gate_scale=False)
DEEP = ChannelGated("imagenet", 50, 5, 32, width=4, shortcut="B", gate_group=2, gate_scale=False)
TINY = {"resnet20 channels/16": BASIC, "resnet50 channels/64": DEEP}


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch):
    monkeypatch.setattr(inference_networks, "CHANNEL_NETWORKS", TINY)
    monkeypatch.setattr(results, "MOST_BUSY", 1.0)  # whatever else runs beside the tests


def run(folder, *arguments):
    arguments = (f"--output={folder}", "--repeats=2", *arguments)
    return json.loads(channels.run(channels.parse(["channels.py", *arguments])).read_text())


def test_a_network_is_timed_checked_and_drawn_once(tmp_path, capsys):
    arguments = ("--networks=resnet20", "--batch_sizes=1,4", "--usages=0.5,1", "--torch=False",
                 "--executions=filters,pieces")  # fmt: skip
    record = run(tmp_path, *arguments)
    assert "resnet20 channels/16, float32" in capsys.readouterr().out
    assert [group["group"] for group in record["groups"]] == [
        f"resnet20 channels/16, batch {batch}, float32" for batch in (1, 4)
    ]
    # Dense, and two executions of half agreeing, half independent, all agreeing and independent.
    assert len(record["rows"]) == 2 * (1 + 2 * 4)
    checked = [row for row in record["rows"] if row["gates"] != "all on"]
    assert max(row["relative_difference"] for row in checked) <= 1e-5
    half = [row for row in checked if row["usage"] == 0.5]
    assert all(0.2 < row["flops_share"] < 0.9 for row in half)
    assert len(list(tmp_path.glob("*.png"))) == 1
    assert run(tmp_path, *arguments)["rows"] == record["rows"]
    assert "measured already" in capsys.readouterr().out


@pytest.mark.slow
def test_pytorch_masks_what_gates_close():
    torch = pytest.importorskip("torch")
    from benchmarks import torch_networks

    network = torch_networks.build(DEEP, "cpu").eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        every = torch.ones(3, DEEP.num_gates)
        expected = network(images)
        torch.testing.assert_close(network.masking(images, every), expected)
        # The second of two groups of the second block's first layer: of the third and fourth
        # channels, whose BatchNorm gives nothing if it is 0.
        block = DEEP.gates_of_block(DEEP.stages[0])
        policy = every.clone()
        policy[:, block + 1] = 0
        closed = network.masking(images, policy)
        norm = network.blocks[1].residual[1]
        norm.weight[2:] = norm.bias[2:] = 0
        torch.testing.assert_close(network(images), closed)
        assert not torch.allclose(closed, expected)


def test_what_it_does_not_know_is_one_sentence():
    with pytest.raises(UserError, match="--groups is '8'; expected one or more of 1, 16, 64"):
        channels.parse([sys.argv[0], "--groups=8"])
    with pytest.raises(UserError, match="--networks is 'resnet34'; expected one or more of"):
        channels.parse([sys.argv[0], "--networks=resnet34"])


def test_groups_of_every_width(monkeypatch):
    monkeypatch.undo()
    known = inference_networks.CHANNEL_NETWORKS
    assert "resnet20 channels/64" not in known and "resnet20 channels/16" in known
    for name, arch in known.items():
        assert arch.gate_group == int(name.split("/")[1])
        plain = inference_networks.NETWORKS[name.split()[0]]
        assert arch.cost.full_macs - arch.cost.gate_macs == plain.cost.full_macs
        gates = np.ones((1, arch.num_gates), np.float32)
        assert inference_cases.macs_per_sample(arch, gates)[0] == arch.cost.full_macs
