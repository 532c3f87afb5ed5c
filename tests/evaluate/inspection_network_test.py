"""The networks that are looked into: which may be, their gates' logits, and the paths they take."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from helpers.variables import init_variables
from urnet_jax import config as config_lib
from urnet_jax.errors import UserError
from urnet_jax.evaluate import inspection
from urnet_jax.nets import network
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.mode import Mode
from urnet_jax.runs import checkpoint
from urnet_jax.runs.meta import Meta
from urnet_jax.train import loop


def test_a_network_without_trained_gates_is_refused(tiny, finished, tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        inspection.load(tmp_path)
    first = min(
        (checkpoint.read_meta(finished, step) for step in checkpoint.steps(finished)),
        key=lambda meta: meta.step,
    )
    if first.phase == "pretrain":
        with pytest.raises(UserError, match="of phase pretrain, which has no trained gates"):
            inspection.load(finished, first.step)
    config = tiny({"model.gated": False, "pretrain.epochs": 0.1, "joint.epochs": 0.0})
    loop.train_and_evaluate(config, tmp_path / "plain")
    with pytest.raises(UserError, match="of a plain network, which has no trained gates"):
        inspection.load(tmp_path / "plain")


def test_a_network_whose_blocks_chance_decides_is_refused(tiny, tmp_path):
    attention = {"gate.random_drop": "always", "scale.beta": 0.0, "joint.epochs": 0.1}
    loop.train_and_evaluate(tiny(attention | {"pretrain.epochs": 0.0}), tmp_path)
    with pytest.raises(UserError, match="chance decides which blocks of the network run"):
        inspection.load(tmp_path)


def test_gates_that_heed_the_scale_alone_take_one_path(run):
    def blind(path: Any, leaf: Any) -> Any:
        if path[-2].key != "fc1" or path[-1].key != "kernel":
            return leaf
        return leaf.at[..., : leaf.shape[-2] // 2, :].set(0)  # [..., 2C, hidden]: features, then S

    params = jax.tree_util.tree_map_with_path(blind, run.params)
    gates = dataclasses.replace(run, params=params).gates()
    assert set(inspection.distinct_paths(gates)) == {1}
    logits: Any = gates.groupby(["block", "scale"])["gate_logit"].agg(["std", "mean"])
    assert (logits["std"] < 1e-5).all()
    assert (logits["mean"].unstack().diff(axis=1).iloc[:, 1:].abs() > 1e-3).all(axis=None)


def test_gates_that_are_given_have_no_logits(tiny):
    config = tiny()
    graph, variables = network.graph(*config_lib.network(config)), init_variables(config)
    images, inputs = jnp.zeros((2, 8, 8, 1)), GateInputs(jnp.ones(2))
    output, _ = network.apply(graph, *variables, images, inputs)
    assert output.gate_logits is not None
    assert output.gates.shape == output.gate_logits.shape == (2, 3)
    assert output.prediction.shape == (2, 10)
    given = inputs._replace(given=jnp.ones((2, 3)))
    assert network.apply(graph, *variables, images, given)[0].gate_logits is None


@pytest.mark.parametrize("execution", ["dense", "cond", "compact", "pieces"])
def test_every_execution_gives_the_logits(tiny, execution):
    config = tiny()
    graph, variables = network.graph(*config_lib.network(config)), init_variables(config)
    rng = np.random.default_rng(0)
    images, scale = jnp.asarray(rng.normal(size=(4, 8, 8, 1)), jnp.float32), jnp.full(4, 0.5)
    inputs = GateInputs(scale)
    expected, _ = network.apply(graph, *variables, images, inputs)
    found, _ = network.apply(graph, *variables, images, inputs, Mode(execution=execution))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAINED = ROOT / "results" / "cifar10_resnet20" / "run"
TFDS = ROOT.parent / "shared" / "data" / "tfds"


@pytest.mark.skipif(not (TFDS / "cifar10").is_dir(), reason="no prepared cifar10")
def test_the_trained_network_of_the_results_has_paths_that_depend_on_the_image():
    run = inspection.load(TRAINED, data_dir=str(TFDS))
    gates = run.gates((0.4, 0.6))
    paths = inspection.distinct_paths(gates).to_dict()
    assert min(paths.values()) > 1
    table: Any = inspection.samples(gates)
    used = table.groupby("scale")["blocks"].mean()
    recorded: Any = pd.read_csv(TRAINED.parent / "eval.csv").set_index("scale")["blocks_mean"]
    assert used.to_dict() == pytest.approx(recorded[[0.4, 0.6]].to_dict(), abs=0.01)


def test_random_drop_leaves_an_example_the_same_blocks_in_any_part_of_a_split(tiny):
    config = tiny({"model.gated": False, "gate.random_drop": "test"})
    meta = Meta(1, "joint", 1, 1, 22.0, config)
    dropping = inspection.Run(meta, *init_variables(config))
    whole = dropping.evaluate((0.5,)).gates[0]
    assert len(np.unique(whole, axis=0)) > 1
    part = dropping.subset(7)
    assert part.numbers is not None
    np.testing.assert_array_equal(dropping.evaluate((0.5,), part).gates[0], whole[part.numbers])
    for sample in (3, 200):
        swept = dropping.sweep(sample, (0.5,))
        np.testing.assert_array_equal(swept["gate"], whole[sample])
