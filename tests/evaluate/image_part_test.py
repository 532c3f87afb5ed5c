"""What looking at the image gains: the network against itself without it, at equal cost."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from urnet_jax.config import network as network_of
from urnet_jax.data import augment
from urnet_jax.data.splits import examples
from urnet_jax.errors import UserError
from urnet_jax.evaluate import image_part, job
from urnet_jax.nets import network
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.cost import flops_per_sample
from urnet_jax.train import loop

SCALES = (0.3, 0.6, 1.0)


def test_without_the_image_all_take_one_path_in_the_order_of_mean_logits(run):
    seen = run.evaluate(SCALES)
    for k in range(len(SCALES)):
        paths = image_part.fixed_paths(seen, k)
        np.testing.assert_array_equal(paths.sum(axis=1), np.arange(seen.num_gates + 1))
        assert (np.diff(paths, axis=0) >= 0).all()
        # Each block that is added has no higher a mean logit than those before.
        means = seen.gate_logits[k].mean(axis=0)
        added = [means[np.flatnonzero(step)[0]] for step in np.diff(paths, axis=0)]
        assert added == sorted(added, reverse=True)


def test_equal_cost_is_a_mixture_of_two_forced_paths(run):
    split = run.split("test")
    seen = run.evaluate(SCALES, split)
    table = image_part.gains_of_looking(run, SCALES, split)
    assert list(table["scale"]) == list(SCALES)
    rows: Any = table.itertuples()
    for k, row in enumerate(rows):
        own = 100 * seen.right[k].mean()
        assert row.top1_percent == pytest.approx(own)
        assert row.gain == pytest.approx(own - row.fixed_percent)
        assert row.distinct_paths == len({path.tobytes() for path in seen.gates[k]})
        paths = image_part.fixed_paths(seen, k)
        costs = flops_per_sample(run.arch, paths).astype(float)
        # Where its cost lies between those of two paths, so does its accuracy.
        low, share = next(
            (n, (seen.flops[k].mean() - costs[n]) / (costs[n + 1] - costs[n]))
            for n in range(len(costs) - 1)
            if costs[n] <= seen.flops[k].mean() <= costs[n + 1]
        )
        tops = [_forced(run, split, row.scale, paths[n]) for n in (low, low + 1)]
        assert row.fixed_percent == pytest.approx((1 - share) * tops[0] + share * tops[1])


def _forced(run, split, scale, path) -> float:
    """Top-1 where all images take a path, through the gates' `given`."""
    images, labels = examples(split, np.arange(split.num_examples))
    pixels = augment.normalize(images, *augment.normalization("digits"))
    size = len(labels)
    given = np.tile(path, (size, 1))
    graph = network.graph(*network_of(run.config))
    inputs = GateInputs(jnp.full(size, scale), given=jnp.asarray(given))
    output, _ = network.apply(graph, run.params, run.batch_stats, pixels, inputs)
    return 100 * float((np.asarray(output.prediction).argmax(1) == labels).mean())


def test_a_network_that_never_looks_gains_nothing(run):
    """Gates whose weights on the features are 0 decide by S alone."""
    blind = dataclasses.replace(run, params=_blind(run.params))
    table = image_part.gains_of_looking(blind, SCALES)
    assert set(table["distinct_paths"]) == {1}
    np.testing.assert_allclose(table["gain"], 0, atol=1e-9)


def _blind(params):
    """The same parameters, gates' weights on features and S set to 0."""
    flat = traverse_util.flatten_dict(params)
    zero = {
        path: np.zeros_like(leaf) if "gate" in path and path[-1] == "kernel" else leaf
        for path, leaf in flat.items()
    }
    return traverse_util.unflatten_dict(zero)


def test_evaluation_records_and_says_it(finished, tmp_path, capsys):
    job.evaluate_workdir(finished, scales=SCALES, output=tmp_path, image_part=True)
    printed = capsys.readouterr().out
    assert "Points that gates gain by looking at the image, at equal cost: " in printed
    rows = json.loads((tmp_path / "eval.json").read_text())["image_part"]
    assert [row["scale"] for row in rows] == list(SCALES)
    assert {"fixed_percent", "gain", "distinct_paths"} <= rows[0].keys()


def test_a_network_without_trained_gates_is_refused(tiny, tmp_path):
    config = tiny({"gates.epochs": 0.0, "joint.epochs": 0.0, "pretrain.epochs": 0.2})
    loop.train_and_evaluate(config, tmp_path / "run")
    with pytest.raises(UserError, match="--image_part asks what trained gates gain"):
        job.evaluate_workdir(tmp_path / "run", output=tmp_path / "out", image_part=True)
    assert not (tmp_path / "out").exists()
