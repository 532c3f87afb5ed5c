"""Real steps on the digits, in each of the three phases."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from urnet_jax import config as config_lib
from urnet_jax import data, state, steps
from urnet_jax.config import Config
from urnet_jax.fields import PHASES

STEPS_PER_EPOCH = 22.5
NUM_STEPS = 6

# Golden: the losses of the first three steps of `joint`. They move with whatever moves training:
# order of the data, augmentation, initial weights, draws of S and of gates, network, optimiser.
# Moved on purpose, put the new numbers here and say so in the change; moved by surprise, find out
# which of these it was before anything else.
JOINT_LOSSES = [2.634685, 2.678873, 2.587197]


def small_config(depth: int = 8, **overrides: Any) -> Config:
    """Three blocks on the digits, with numbers of its own, for the shipped ones may be tuned."""
    config = config_lib.load("digits")
    config.model.update({"depth": depth, "width": 8, "gate_bias": 0.0})
    config.gate.update({"sigmoid_probability": 0.5, "draw": "gate"})
    config.scale.update({"min": 0.2, "max": 1.0, "draw": "sample", "loss": "sample", "beta": 4.0})
    for phase in PHASES:
        config[phase].update({"epochs": 2.0, "learning_rate": 0.1, "warmup_epochs": 0.1})
    for name, value in overrides.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    return config


@functools.cache
def batches() -> list[Any]:
    config = small_config()
    split = data.open_split(config.data, "train")
    stream = iter(data.train_batches(split, config.data, seed=0))
    return [next(stream) for _ in range(NUM_STEPS)]


@dataclasses.dataclass
class Run:
    """A phase's step, the state before and after each of its steps, and their metrics."""

    config: Config
    step: Any
    states: list[state.TrainState]
    metrics: list[dict[str, float]]


def train(config: Config, phase: str, variables: Any = None, step: Any = None) -> Run:
    step = step or steps.make_train_step(config, phase, STEPS_PER_EPOCH)
    params, batch_stats = variables or state.init_variables(config)
    states = [state.begin_phase(params, batch_stats, config, phase, STEPS_PER_EPOCH, step=100)]
    metrics = []
    for batch in batches():
        # A copy: the step donates what it is given.
        after, found = step(jax.tree.map(jnp.copy, states[-1]), batch)
        states.append(after)
        metrics.append({name: float(value) for name, value in found.compute().items()})
    return Run(config, step, states, metrics)


@pytest.fixture(scope="module")
def variables() -> Any:
    return state.init_variables(small_config())


@pytest.fixture(scope="module")
def pretrain(variables) -> Run:
    return train(small_config(), "pretrain", variables)


@pytest.fixture(scope="module")
def gates() -> Run:
    """Two blocks to a stage; S and its loss as in the paper, once for the batch."""
    config = small_config(depth=14, scale__draw="step", scale__loss="group", scale__beta=3.0)
    config.gates.ema_decay = 0.9
    return train(config, "gates")


@pytest.fixture(scope="module")
def joint(variables) -> Run:
    return train(small_config(joint__ema_decay=0.9), "joint", variables)


def named(tree: Any) -> dict[str, np.ndarray]:
    return {
        path: np.asarray(value) for path, value in traverse_util.flatten_dict(tree, sep="/").items()
    }


def changed(run: Run, part: str) -> tuple[set[str], set[str]]:
    """Names of the arrays that differ after the steps, and of those that do not, in any bit."""
    before, after = (named(getattr(run.states[n], part)) for n in (0, -1))
    assert before.keys() == after.keys()
    moved = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    return moved, before.keys() - moved


def gates_among(paths: set[str]) -> set[str]:
    return {path for path in paths if "gate" in path.split("/")}


def assert_same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_pretrain_moves_all_but_the_gates(pretrain: Run):
    moved, kept = changed(pretrain, "params")
    assert len(kept) == 3 * 4 and gates_among(kept) == kept and not gates_among(moved)
    assert not changed(pretrain, "batch_stats")[1]


def test_pretrain_runs_every_block_and_ignores_the_scale(pretrain: Run):
    for metrics in pretrain.metrics:
        assert (metrics["usage"], metrics["scale"], metrics["scale_loss"]) == (1, 1, 0)
        assert metrics["loss"] == metrics["cross_entropy"]


def test_pretrain_learns(pretrain: Run):
    now, losses = jax.tree.map(jnp.copy, pretrain.states[-1]), []
    for batch in batches() * 4:
        now, metrics = pretrain.step(now, batch)
        losses.append(float(metrics.compute()["loss"]))
    assert np.mean(losses[-NUM_STEPS:]) < pretrain.metrics[0]["loss"] - 0.5


def test_the_phase_gates_moves_nothing_but_gates(gates: Run):
    moved, kept = changed(gates, "params")
    assert len(moved) == 6 * 4 and gates_among(moved) == moved and not gates_among(kept)
    assert not changed(gates, "batch_stats")[0]
    averaged, _ = changed(gates, "ema_params")
    assert averaged == moved


def test_joint_moves_everything(joint: Run):
    assert not changed(joint, "params")[1]
    assert not changed(joint, "batch_stats")[1]


def test_everything_stays_float32(joint: Run):
    after = joint.states[-1]
    for part in (after.params, after.batch_stats, after.ema_params):
        assert {leaf.dtype for leaf in jax.tree.leaves(part)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", PHASES)
def test_steps_are_counted(name: str, request: pytest.FixtureRequest):
    states = request.getfixturevalue(name).states
    assert [int(s.step) for s in states] == list(range(100, 101 + NUM_STEPS))
    assert [int(s.phase_step) for s in states] == list(range(1 + NUM_STEPS))


@pytest.mark.parametrize("name", ["gates", "joint"])
def test_the_loss_is_equation_5(name: str, request: pytest.FixtureRequest):
    run = request.getfixturevalue(name)
    beta = {"gates": 3.0, "joint": 4.0}[name]
    for metrics in run.metrics:
        weighted = metrics["cross_entropy"] + beta * metrics["scale_loss"]
        assert metrics["loss"] == pytest.approx(weighted, rel=1e-5)
        assert metrics["scale_loss"] > 0


def test_the_scale_loss_on_the_batch_mean_is_that_of_the_means(gates: Run):
    for metrics in gates.metrics:
        expected = (metrics["usage"] - metrics["scale"]) ** 2
        assert metrics["scale_loss"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_scale_loss_per_sample_is_more_than_that_of_the_means(joint: Run):
    for metrics in joint.metrics:
        # S alone has a variance of 0.8^2 / 12 = 0.053 among the samples.
        assert metrics["scale_loss"] > (metrics["usage"] - metrics["scale"]) ** 2 + 0.02


def test_scales_are_drawn_as_configured(gates: Run, joint: Run):
    per_step = [metrics["scale"] for metrics in gates.metrics]
    per_sample = [metrics["scale"] for metrics in joint.metrics]
    # Uniform on [0.2, 1]: one draw deviates by 0.23, the mean of 64 by 0.029.
    assert all(0.2 <= s <= 1 for s in per_step) and np.std(per_step) > 0.1
    assert all(abs(s - 0.6) < 4 * 0.029 for s in per_sample)
    assert len(set(per_step)) == len(set(per_sample)) == NUM_STEPS


def test_the_average_follows_the_parameters(joint: Run):
    # After each step 0.9 of the average and 0.1 of the new parameters.
    average = named(joint.states[0].params)
    for after in joint.states[1:]:
        params, ema = named(after.params), named(after.ema_params)
        average = {path: 0.9 * average[path] + 0.1 * params[path] for path in average}
        for path, value in ema.items():
            np.testing.assert_allclose(value, average[path], rtol=1e-5, atol=1e-6)
    assert joint.states[-1].eval_params is joint.states[-1].ema_params


def test_without_an_average_the_parameters_are_evaluated(pretrain: Run):
    assert pretrain.states[-1].ema_params is None
    assert pretrain.states[-1].eval_params is pretrain.states[-1].params


def test_a_step_is_a_function_of_state_and_batch(joint: Run):
    start = joint.states[0]
    again = train(joint.config, "joint", (start.params, start.batch_stats), joint.step)
    assert again.metrics == joint.metrics
    assert_same(again.states[-1], joint.states[-1])


def test_the_step_number_changes_the_draws(joint: Run):
    begun: Any = joint.states[0]
    later = begun.replace(step=jnp.asarray(101, jnp.int32))
    _, metrics = joint.step(jax.tree.map(jnp.copy, later), batches()[0])
    assert float(metrics.compute()["scale"]) != joint.metrics[0]["scale"]


def test_another_seed_trains_another_network(joint: Run):
    config = small_config(seed=1, joint__ema_decay=0.9)
    step = steps.make_train_step(config, "joint", STEPS_PER_EPOCH)
    after, metrics = step(jax.tree.map(jnp.copy, joint.states[0]), batches()[0])
    assert float(metrics.compute()["scale"]) != joint.metrics[0]["scale"]
    fc, expected = (s.params["fc"]["kernel"] for s in (after, joint.states[1]))
    assert np.any(fc != expected)


def test_golden_losses(joint: Run):
    losses = [metrics["loss"] for metrics in joint.metrics[:3]]
    np.testing.assert_allclose(losses, JOINT_LOSSES, rtol=1e-4)


@pytest.fixture(scope="module")
def tested() -> Any:
    config = small_config()
    return next(iter(data.eval_batches(data.open_split(config.data, "test"), config.data, 64)))


def test_evaluation_has_hard_gates_at_each_samples_scale(joint: Run, tested: Any):
    after = joint.states[-1]
    scale = jnp.linspace(0, 1, 64)
    found = steps.make_eval_step(joint.config)(
        after.eval_params,
        after.batch_stats,
        tested["image"],
        tested["label"],
        scale,
        tested["index"],
    )
    images = (jnp.asarray(tested["image"], jnp.float32) / 255 - 0.3054) / 0.376
    graph = state.network_graph(joint.config)
    logits, expected, _ = state.apply(graph, after.eval_params, after.batch_stats, images, scale)
    assert np.isin(found["gates"], (0, 1)).all()
    np.testing.assert_array_equal(found["gates"], expected)
    np.testing.assert_array_equal(found["prediction"], np.argmax(logits, axis=1))
    np.testing.assert_array_equal(found["correct"], found["prediction"] == tested["label"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, tested["label"])
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-4, atol=1e-5)


def test_pretrain_is_evaluated_with_all_blocks(pretrain: Run, tested: Any):
    after = pretrain.states[-1]
    found = steps.make_eval_step(pretrain.config, "pretrain")(
        after.eval_params,
        after.batch_stats,
        tested["image"],
        tested["label"],
        jnp.zeros(64),
        tested["index"],
    )
    np.testing.assert_array_equal(found["gates"], np.ones((64, 3)))


@pytest.mark.parametrize(("scan", "expected"), [("loop", False), ("unroll", True)])
def test_the_config_chooses_how_blocks_run(scan: str, expected: bool):
    for platform in ("cpu", "tpu"):
        assert steps.use_unroll(small_config(model__scan=scan), platform) is expected
        assert steps.use_unroll(small_config(), platform) is (platform == "cpu")


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts: int):
    """In the phase gates, where BatchNorm's statistics do not depend on the batch."""
    fields: Any = {"scale__draw": "sample", "scale__loss": "sample"}
    whole = train(small_config(**fields), "gates")
    accumulated = train(small_config(accumulate_steps=parts, **fields), "gates")
    for one, other in zip(whole.metrics, accumulated.metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    expected, found = (named(run.states[-1].params) for run in (whole, accumulated))
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-4, atol=1e-6, err_msg=path)


def test_accumulation_normalises_each_part_by_itself(joint: Run):
    config = small_config(accumulate_steps=2, joint__ema_decay=0.9)
    start = joint.states[0]
    after = train(config, "joint", (start.params, start.batch_stats))
    assert after.metrics[0]["scale"] == pytest.approx(joint.metrics[0]["scale"], rel=1e-6)
    assert after.metrics[0]["loss"] == pytest.approx(joint.metrics[0]["loss"], rel=0.2)
    assert after.metrics[0]["loss"] != pytest.approx(joint.metrics[0]["loss"], rel=1e-4)
    # The running mean moved twice, each time by a tenth of the way to a part's mean.
    begun, once, twice = (
        named(run.states[n].batch_stats)["bn1/mean"]
        for run, n in ((joint, 0), (joint, 1), (after, 1))
    )
    ratio = np.linalg.norm(twice - begun) / np.linalg.norm(once - begun)
    assert ratio == pytest.approx(1.9, abs=0.1)


def evaluated(config: Config, variables: Any, batch: Any, scale: Any) -> Any:
    params, batch_stats = variables
    return steps.make_eval_step(config)(
        params, batch_stats, batch["image"], batch["label"], scale, batch["index"]
    )


@pytest.mark.parametrize("drop", ["test", "always"])
def test_a_plain_network_drops_blocks_at_random(drop: str, tested: Any):
    config = small_config(model__gated=False, gate__random_drop=drop)
    variables = state.init_variables(config)
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
    variables = state.init_variables(config)
    gates = np.asarray(evaluated(config, variables, tested, jnp.full(64, 0.5))["gates"])
    left = gates > 0
    assert left.mean() == pytest.approx(0.5, abs=0.1)
    assert gates[left].max() < 1 and len(np.unique(gates[left])) > 64
    plain = small_config(model__gated=False, gate__random_drop="always")
    kept = evaluated(plain, state.init_variables(plain), tested, jnp.full(64, 0.5))["gates"]
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
    variables, scale = state.init_variables(plain), jnp.linspace(0, 1, 64)
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
            np.testing.assert_array_equal(adam[path], sgd[path])
        elif path.endswith("fc2/bias"):  # Adam's first step is its rate, whatever the gradient.
            step = np.abs(adam[path] - before[path])
            np.testing.assert_allclose(step, 0.1 * factor, rtol=1e-3)
