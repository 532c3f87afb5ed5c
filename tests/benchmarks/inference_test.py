"""The inference benchmark, on networks that run in milliseconds."""

import dataclasses
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import benchmarks
from benchmarks import (
    inference,
    inference_cases,
    inference_networks,
    inference_report,
    results,
    timing,
)
from urnet_jax.errors import UserError
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.cost import macs_per_sample

CIFAR = Architecture("cifar", 14, 5, image_size=8, width=4, gated=False)
TINY = dict.fromkeys(inference_networks.NETWORKS, CIFAR) | {
    "resnet50": Architecture("imagenet", 50, 5, image_size=32, width=4, shortcut="B", gated=False),
}


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch):
    monkeypatch.setattr(inference_networks, "NETWORKS", TINY)
    monkeypatch.setattr(results, "MOST_BUSY", 1.0)  # whatever else runs beside the tests
    monkeypatch.setattr(inference, "COMPILATIONS", 1)
    monkeypatch.setattr(inference, "COMPILE_BATCH", 4)


def run(folder, *arguments):
    arguments = (f"--output={folder}", "--repeats=2", "--torch=False", *arguments)
    return json.loads(inference.run(inference.parse(["inference.py", *arguments])).read_text())


@pytest.mark.slow
def test_every_group_is_measured_once(tmp_path, capsys, monkeypatch):
    arguments = ["--networks=resnet110", "--batch_sizes=1,4", "--usages=0,0.5,1"]
    first = run(tmp_path, *arguments)
    printed = capsys.readouterr().out
    assert "resnet110, float32" in printed and "compiling" in printed

    forward = [row for row in first["rows"] if row["kind"] == "forward"]
    # Dense, and three usages of two kinds of gates.
    assert len(forward) == 2 * (1 + 6)
    for row in forward:
        assert row["median_ms"] > 0 and row["compile_s"] > 0
        assert 0 < row["time_share_p25"] <= row["time_share"] <= row["time_share_p75"]
        if (row["gates"], row["execution"]) == ("all on", "dense"):
            assert row["time_share"] == 1
        assert (row["platform"], row["dtype"], row["threads"]) == (
            "cpu",
            "float32",
            timing.threads(),
        )
        if row["gates"] != "all on":
            assert row["execution"] == {1: "cond", 4: "pieces"}[row["batch_size"]]
            assert row["relative_difference"] <= 1e-5 and row["flipped_samples"] == 0
    compiled = [row for row in first["rows"] if row["kind"] == "compile"]
    assert {(row["network"], row["execution"]) for row in compiled} == {
        (network, execution)
        for network in ("resnet20", "resnet110")
        for execution in ("dense", "compact", "pieces")
    }
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(inference, "measure", fail)
    again = run(tmp_path, *arguments)
    assert again["rows"] == first["rows"]
    stopped = run(tmp_path, *arguments, "--fresh", "--time_limit_s=0")
    assert stopped["rows"] == first["rows"]


def test_gates_cost_what_they_are_asked_to():
    arch = Architecture("cifar", 110, 10, 32, gated=False)
    requests = inference_cases.drawn_requests(arch, 128, [0, 0.25, 1])
    assert [r.gates for r in requests] == [
        ("agreeing", "independent"), ("agreeing",), ("independent",), ("agreeing", "independent"),
    ]  # fmt: skip
    agreeing, independent = requests[1].used, requests[2].used
    assert (agreeing == agreeing[0]).all() and agreeing[0].sum() == 14  # 0.25 * 54 = 13.5
    assert independent.mean() == pytest.approx(0.25, abs=0.01)
    assert 0.1 < independent.mean(axis=0).min() < independent.mean(axis=0).max() < 0.4
    assert inference_cases.shares(arch, requests[3])["flops_share"] == 1
    share = inference_cases.shares(arch, requests[1])["flops_share"]
    macs = macs_per_sample(arch, agreeing)
    assert share == pytest.approx(macs[0] / arch.cost.full_macs)


def test_gates_change_the_logits_enough_to_be_missed():
    subject = inference_cases.drawn_subject("resnet110", 4, "float32", [0.5])
    wrong = dataclasses.replace(subject.requests[1], used=1 - subject.requests[1].used)
    dense = inference_cases.forward(subject, "dense")
    images, scale = jnp.asarray(subject.images), jnp.zeros(4)
    logits, gates = (
        [dense(subject.params, subject.batch_stats, images, scale, jnp.asarray(request.used))[part]
         for request in (subject.requests[1], wrong)]
        for part in (0, 1)
    )  # fmt: skip
    difference = np.abs(logits[0] - logits[1]).max() / np.abs(logits[0]).max()
    assert 1e-2 < difference < 1e2
    with pytest.raises(RuntimeError, match="this execution is wrong"):
        inference_cases.compare((logits[0], gates[0]), (logits[1], gates[0]), 1e-2, "this")
    with pytest.raises(RuntimeError, match="4 of 4 samples have other gates"):
        inference_cases.compare((logits[0], gates[0]), (logits[0], gates[1]), 1e-2, "this")


def test_a_wrong_execution_stops_the_benchmark(tmp_path, monkeypatch):
    right = inference_cases.forward

    def wrong(subject, execution):
        def run(*arguments):
            logits, gates = right(subject, "dense")(*arguments)
            return (logits if execution == "dense" else logits * 1.01), gates

        return run

    monkeypatch.setattr(inference_cases, "forward", wrong)
    with pytest.raises(RuntimeError, match="resnet110, batch 4, pieces, usage 0.5: the logits are"):
        run(tmp_path, "--networks=resnet110", "--batch_sizes=4", "--usages=0.5", "--compile=False")
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.slow
def test_trained_gates_follow_s(tmp_path, finished):
    arguments = ["--networks=resnet110", "--batch_sizes=8", "--usages=1", "--compile=False"]
    rows = run(tmp_path, *arguments, f"--trained_workdir={finished}")["rows"]
    trained = [row for row in rows if row["gates"] == "trained"]
    assert [row["usage"] for row in trained] == list(inference.TRAINED_SCALES)
    assert {row["network"] for row in trained} == {"resnet8 trained"}
    assert all(0 < row["flops_share"] <= 1 for row in trained)


def test_memory_that_is_too_small_leaves_a_group_out(tmp_path, monkeypatch, capsys):
    def too_large(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")

    monkeypatch.setattr(inference, "forward_rows", too_large)
    record = run(tmp_path, "--networks=resnet50", "--batch_sizes=4", "--compile=False")
    assert record["groups"][0]["notes"] == {"left out": "it does not fit into the device's memory"}
    assert "left out: it does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--networks=resnet2", "--networks is 'resnet2'; expected one or more of resnet20, "),
        ("--executions=fast", "--executions is 'fast'; expected one or more of auto, dense, "),
        ("--dtype=float16", "--dtype is 'float16'; expected one or more of float32, bfloat16"),
        ("--batch_sizes=0", "--batch_sizes is '0'; expected numbers from 1 to "),
        ("--usages=0.5,x", "--usages is '0.5,x'; expected numbers from 0 to 1, "),
        ("--batchsizes=1", "Unknown command line flag 'batchsizes'"),
        ("resnet50", "unexpected argument 'resnet50'; write every option as --name=value."),
    ],
)
def test_a_wrong_flag_is_one_sentence(argument, sentence):
    with pytest.raises(UserError) as error:
        inference.parse(["inference.py", argument])
    assert sentence in str(error.value)


def test_missing_torch_names_the_extra(tmp_path, monkeypatch):
    # As if nothing had imported PyTorch: a package keeps its modules as attributes too.
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.torch_networks", raising=False)
    monkeypatch.delattr(benchmarks, "torch_networks", raising=False)
    with pytest.raises(UserError, match=r"pip install '\.\[torch\]'.*--torch=False"):
        run(tmp_path, "--torch=True")


@pytest.mark.slow
def test_pytorch_has_the_same_architecture_and_drops_blocks():
    torch = pytest.importorskip("torch")
    flop_counter = pytest.importorskip("torch.utils.flop_counter")
    from benchmarks import torch_networks

    for name in ("resnet110", "resnet50"):
        subject = inference_cases.drawn_subject(name, 3, "float32", [0.5])
        network = torch_networks.build(subject.arch, "cpu").eval()
        weights = sum(leaf.size for leaf in inference.jax.tree.leaves(subject.params))
        assert sum(p.numel() for p in network.parameters()) == weights
        with flop_counter.FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(torch_networks.to_torch(subject.images, "cpu"))
        assert counter.get_total_flops() == 3 * 2 * subject.arch.cost.full_macs
        images = torch_networks.to_torch(subject.images, "cpu")
        policy = torch.from_numpy(subject.requests[1].used)
        with torch.inference_mode():
            together = network.dropping(images, policy)
            one_by_one = [network.dropping(images[i : i + 1], policy[i : i + 1]) for i in range(3)]
            dense = network.dropping(images, torch.ones_like(policy))
            torch.testing.assert_close(dense, network(images))
        torch.testing.assert_close(torch.cat(one_by_one), together)


def test_cases_are_timed_in_turn():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = timing.interleaved_times_ms(cases, 3)
    assert {name: values.shape for name, values in times.items()} == dict.fromkeys("abc", (3,))
    turn = 1 + timing.MOST_CALLS
    rounds = calls[6:]
    assert len(rounds) == 3 * 3 * turn
    for i in range(0, len(rounds), 3 * turn):
        assert {rounds[i + k * turn] for k in range(3)} == set("abc")


def test_a_file_is_named_after_the_device():
    cpu = {"platform": "cpu", "kind": "cpu", "processor": "Some CPU(R) @ 2 GHz", "threads": 4}
    assert results.device_slug(cpu) == "cpu_some_cpu_r_2_ghz_4_threads"
    gpu = {"platform": "gpu", "kind": "NVIDIA H100 80GB HBM3", "processor": "", "threads": 8}
    assert results.device_slug(gpu) == "nvidia_h100_80gb_hbm3"


def test_the_plot_has_a_panel_per_network_and_dtype():
    row = {"kind": "forward", "batch_size": 1, "execution": "cond", "framework": "jax"}
    rows = [
        row | {"network": network, "dtype": dtype, "gates": gates, "flops_share": 1.0}
        | {"time_share": 1.0}
        for network in ("a", "b") for dtype in ("float32", "bfloat16")
        for gates in ("agreeing", "independent")
    ]  # fmt: skip
    axes = inference_report.plot(rows, "a device").axes
    titles = [ax.get_title() for ax in axes if ax.axison]
    assert titles == ["a, float32", "a, bfloat16", "b, float32", "b, bfloat16"]
