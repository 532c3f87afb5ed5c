"""Real steps with the other ways to gate, to draw S, to count blocks and to train gates."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.steps_runs import STEPS_PER_EPOCH, changed, eval_step, named, small_config, train
from helpers.variables import init_variables
from urnet_jax.config import Config
from urnet_jax.phases import PHASES


def evaluated(config: Config, variables: Any, batch: Any, scale: Any) -> Any:
    params, batch_stats = variables
    return eval_step(config)(
        params, batch_stats, batch["image"], batch["label"], scale, batch["index"]
    )


@pytest.mark.parametrize("drop", ["test", "always"])
def test_a_plain_network_drops_blocks_at_random(drop: str, tested: Any):
    config = small_config(model__gated=False, gate__random_drop=drop)
    variables = init_variables(config)
    half = jnp.full(64, 0.5)
    found = evaluated(config, variables, tested, half)
    assert set(np.unique(found["gates"])) == {0, 1}
    assert np.mean(found["gates"]) == pytest.approx(0.5, abs=0.1)
    # Which blocks an example keeps depends on its index, and not on its place in a batch.
    turned = {name: np.roll(np.asarray(column), 5, axis=0) for name, column in tested.items()}
    again = evaluated(config, variables, turned, half)
    np.testing.assert_array_equal(np.roll(found["gates"], 5, axis=0), again["gates"])
    np.testing.assert_array_equal(evaluated(config, variables, tested, jnp.ones(64))["gates"], 1)
    in_training = train(config, "joint", variables).metrics[0]["usage"]
    assert in_training == 1 if drop == "test" else 0.4 < in_training < 0.8


def test_block_attention_weighs_what_random_drop_leaves(tested: Any):
    config = small_config(gate__random_drop="always", scale__beta=0.0)
    variables = init_variables(config)
    gates = np.asarray(evaluated(config, variables, tested, jnp.full(64, 0.5))["gates"])
    left = gates > 0
    assert left.mean() == pytest.approx(0.5, abs=0.1)
    assert gates[left].max() < 1 and len(np.unique(gates[left])) > 64
    plain = small_config(model__gated=False, gate__random_drop="always")
    kept = evaluated(plain, init_variables(plain), tested, jnp.full(64, 0.5))["gates"]
    np.testing.assert_array_equal(left, kept)


def gates_moved_by_the_cross_entropy(**fields: Any) -> set[str]:
    run = train(small_config(scale__beta=0.0, gate__sigmoid_probability=0.0, **fields), "gates")
    return changed(run, "params")[0]


def test_at_p_0_only_straight_through_gives_gates_a_gradient():
    assert not gates_moved_by_the_cross_entropy()
    assert gates_moved_by_the_cross_entropy(gate__straight_through=True)


def test_noise_moves_gates_in_training_alone(tested: Any):
    fields: Any = {"gate__sigmoid_probability": 0.0, "scale__draw": "step"}
    plain, noisy = (small_config(gate__noise=noise, **fields) for noise in (False, True))
    one, other = (train(config, "gates").metrics[0] for config in (plain, noisy))
    assert one["scale"] == other["scale"] and one["usage"] != other["usage"]
    variables, scale = init_variables(plain), jnp.linspace(0, 1, 64)
    found = [evaluated(config, variables, tested, scale)["gates"] for config in (plain, noisy)]
    np.testing.assert_array_equal(*found)


def test_the_scale_loss_may_count_what_the_test_counts():
    """Sigmoids of about 0.95 in training are blocks that run: usage is 1."""
    fields: Any = {"model__gate_bias": 3.0, "gate__sigmoid_probability": 1.0, "scale__draw": "step"}
    soft, hard = (
        train(small_config(scale__usage=usage, **fields), "gates").metrics[0]
        for usage in ("gate", "step")
    )
    assert soft["usage"] == hard["usage"] < 1 and soft["scale"] == hard["scale"]
    assert hard["scale_loss"] == pytest.approx((1 - hard["scale"]) ** 2, rel=1e-5)
    assert soft["scale_loss"] < hard["scale_loss"]


def test_the_scale_loss_of_steps_has_a_gradient():
    fields: Any = {"gate__sigmoid_probability": 0.0, "scale__usage": "step"}
    moved, _ = changed(train(small_config(**fields), "gates"), "params")
    assert moved and all("gate/" in path for path in moved)


def test_external_gates_train_with_their_phase():
    run = train(small_config(model__gate_network="external"), "gates")
    moved, same = changed(run, "params")
    assert moved and all(path.startswith("gate/") for path in moved)
    assert not any(path.startswith("gate/") for path in same)
    # Its BatchNorm learns with it; the network's is left alone.
    moved, same = changed(run, "batch_stats")
    assert moved and all(path.startswith("gate/") for path in moved)
    assert same and not any(path.startswith("gate/") for path in same)
    joint = train(small_config(model__gate_network="external"), "joint")
    assert changed(joint, "params")[1] == set()


@pytest.mark.parametrize(
    ("phase", "gated", "before"), [("joint", True, 40), ("gates", True, 0), ("joint", False, 0)]
)
def test_a_fixed_scale_falls_over_the_phases_with_gates(phase: str, gated: bool, before: int):
    """40 steps to each phase; a plain network with random drop leaves phase gates out."""
    fields: Any = {"scale__schedule": "fixed", "scale__fixed": 0.2, "scale__noise": 0.0}
    if not gated:
        fields |= {"model__gated": False, "gate__random_drop": "always"}
    config = small_config(**fields)
    for name in PHASES:
        config[name].epochs = 40 / STEPS_PER_EPOCH
    total = 80 if gated else 40
    run = train(config, phase)
    for n, metrics in enumerate(run.metrics):
        expected = 0.2 + 0.8 * (1 + np.cos(np.pi * (before + n) / total)) / 2
        assert metrics["scale"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_groups_share_a_budget_in_every_part_of_a_batch(parts: int):
    fields: Any = {"scale__draw": "group", "scale__loss": "group", "accumulate_steps": parts}
    run = train(small_config(**fields), "gates")
    by_hand = train(small_config(scale__draw="group", scale__loss="sample"), "gates")
    # The mean of squares is more than the square of the mean, of the same gates and S.
    assert run.metrics[0]["usage"] == pytest.approx(by_hand.metrics[0]["usage"], rel=1e-5)
    assert 0 < run.metrics[0]["scale_loss"] < by_hand.metrics[0]["scale_loss"]


def test_adam_moves_gates_by_its_rate_and_the_backbone_by_sgd():
    factor = 3.0
    fields: Any = {"joint__warmup_epochs": 0.0, "joint__gate_learning_rate_factor": factor}
    with_adam, with_sgd = (
        train(small_config(joint__gate_optimizer=optimizer, **fields), "joint")
        for optimizer in ("adam", "sgd")
    )
    before = named(with_adam.states[0].params)
    adam, sgd = (named(run.states[1].params) for run in (with_adam, with_sgd))
    for path in before:
        if "gate" not in path:
            np.testing.assert_allclose(adam[path], sgd[path], rtol=1e-5, atol=1e-7)
        elif path.endswith("fc2/bias"):  # Adam's first step is its rate, whatever the gradient.
            step = np.abs(adam[path] - before[path])
            np.testing.assert_allclose(step, 0.1 * factor, rtol=1e-3)
