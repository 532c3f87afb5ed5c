"""Two passes a step, a prior, anchors and a controller, on the digits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.steps_runs import batches, small_config, train
from helpers.variables import init_variables
from urnet_jax import config as config_lib
from urnet_jax.config import Config
from urnet_jax.nets import network
from urnet_jax.nets.contract import GateInputs, Output
from urnet_jax.nets.mode import Mode
from urnet_jax.train.objective import OPEN, Along, make_loss, of_half, with_whole

ANCHORS = (0.2, 0.4, 0.6, 0.8)


def resized_config(**overrides: Any) -> Config:
    """Each ingredient of the recipe is on."""
    fields = {
        "model__gate_prior": 20.0, "gate__straight_through": True, "gate__noise": True,
        "gate__sigmoid_probability": 0.0, "scale__of": "flops", "scale__schedule": "anchors",
        "scale__anchors": ANCHORS, "scale__jitter": 0.02, "scale__draw": "group",
        "scale__loss": "group", "scale__usage": "step", "scale__dual_rate": 0.1,
        "scale__guard": 1.0, "distill__weight": 2.0, "distill__fades_by": 0.5,
    }  # fmt: skip
    config = small_config(depth=14, **(fields | overrides))
    config_lib.validate(config)
    return config


def test_whole_and_resized_samples_stand_side_by_side():
    inputs = GateInputs(
        jnp.array([0.2, 0.7]), sigmoid=jnp.ones((2, 3), bool), noise=jnp.full((2, 3), 0.5)
    )
    both = with_whole(inputs, 3)
    np.testing.assert_allclose(both.scale, [1.0, 0.2, 1.0, 0.7])
    assert both.offset is not None and both.sigmoid is not None and both.noise is not None
    np.testing.assert_array_equal(both.offset[:, 0], [OPEN, 0, OPEN, 0])
    np.testing.assert_array_equal(both.sigmoid[:, 0], [False, True, False, True])
    np.testing.assert_array_equal(both.noise[:, 0], [0, 0.5, 0, 0.5])
    output = Output(jnp.arange(4.0)[:, None], jnp.arange(4.0)[:, None])
    np.testing.assert_array_equal(of_half(output, 0).prediction[:, 0], [0, 2])
    np.testing.assert_array_equal(of_half(output, 1).gates[:, 0], [1, 3])


def test_without_an_offset_of_its_own_usage_is_s_before_anything_is_learned():
    config = resized_config()
    arch, build = config_lib.network(config)
    params, stats = init_variables(config)
    scale = jnp.linspace(0.05, 1.0, 64)
    images = jax.random.normal(jax.random.key(0), (64, 8, 8, 1))
    graph = network.graph(arch, build)
    output, _ = network.apply(graph, params, stats, images, GateInputs(scale), Mode())
    used = np.asarray(arch.cost.share(output.gates))
    # As near as whole blocks come.
    half = arch.cost.unit_macs.max() / arch.cost.full_macs / 2
    lowest = arch.cost.always_macs / arch.cost.full_macs
    np.testing.assert_array_less(np.abs(used - np.maximum(scale, lowest)), half + 1e-6)
    assert np.all(np.diff(used) >= 0) and used[-1] == pytest.approx(1)


def loss_of(config: Config, progress: float, multipliers: Any, inputs: GateInputs) -> Any:
    params, stats = init_variables(config)
    batch = {**batches()[0], "inputs": inputs}
    along = Along(jnp.float32(progress), multipliers)
    loss = jax.jit(make_loss(config, "joint", "cpu"))
    return loss({}, along, params, stats, batch)


def test_the_loss_of_two_passes_is_the_sum_of_its_parts():
    config = resized_config(gate__noise=False)
    size, multipliers = config.data.batch_size, jnp.array([1.0, -2.0, 3.0, 0.5])
    scale = jnp.repeat(jnp.array([0.2, 0.8, 0.41, 0.6] * 2), size // 8)
    # Gates that lean away from the prior: else the guard has nothing to say.
    offset = jnp.full((size, 6), 0.7)
    total, (_, outputs) = loss_of(config, 0.1, multipliers, GateInputs(scale, offset=offset))
    gaps = np.asarray(outputs["gaps"])
    price = np.mean(np.array([1.0, 0.5, -2.0, 3.0] * 2) * gaps)
    alone = resized_config(gate__noise=False, scale__guard=0.0)
    without_guard, (_, _) = loss_of(alone, 0.1, multipliers, GateInputs(scale, offset=offset))
    labels = float(outputs["task_loss"].mean())
    whole, (_, of_whole) = loss_of(alone, 1.0, None, GateInputs(scale, offset=offset))
    # At the end only the whole network learns from the labels.
    task_of_whole = float(whole) - 2 * float(of_whole["distill_loss"].mean())
    task_of_whole -= 4 * float(of_whole["scale_loss"])
    expected = task_of_whole + 2 * float(outputs["distill_loss"].mean())
    expected += 4 * np.mean(gaps**2) + price + (1 - 0.1 / 0.5) * labels
    assert float(without_guard) == pytest.approx(expected, rel=1e-4)
    assert float(total) > float(without_guard)  # the guard's part
    assert float(outputs["scale_loss"]) == pytest.approx(np.mean(gaps**2), rel=1e-5)
    assert float(outputs["distill_loss"].min()) >= 0


def test_the_guard_lets_go_over_the_first_third():
    inputs = GateInputs(jnp.full(64, 0.4), offset=jnp.full((64, 6), 3.0))
    plain = resized_config(scale__guard=0.0, distill__fades_by=0.0)
    held = resized_config(scale__guard=5.0, distill__fades_by=0.0)
    parts = [
        float(loss_of(held, progress, None, inputs)[0] - loss_of(plain, progress, None, inputs)[0])
        for progress in (0.0, 1 / 6, 1 / 3, 1.0)
    ]
    assert parts[0] > 0.1 and parts[2:] == pytest.approx([0, 0], abs=1e-5)
    assert parts[1] == pytest.approx(parts[0] / 2, rel=1e-3)


def test_the_distance_moves_nothing_in_the_teacher():
    """A distance that is the teacher's answer alone has a value, and no gradient."""
    config = resized_config(scale__beta=0.0, scale__guard=0.0, distill__weight=5.0)
    with config.unlocked():
        config.model.kind = "helpers.leaning_task:LeaningNetwork"
    params, stats = init_variables(config)
    batch = {**batches()[0], "inputs": GateInputs(jnp.full(64, 0.4))}
    along = Along(jnp.float32(0.0), None)

    def gradient(weight: float) -> tuple[Any, Any]:
        weighed = config.copy_and_resolve_references()
        weighed.distill.weight = weight
        loss = make_loss(weighed, "joint", "cpu")
        return jax.jit(jax.grad(loss, argnums=2, has_aux=True))({}, along, params, stats, batch)

    (much, (_, outputs)), (little, _) = gradient(5.0), gradient(1e-9)
    assert outputs["distill_loss"].min() > 0
    for a, b in zip(jax.tree.leaves(much), jax.tree.leaves(little), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_steps_with_every_ingredient():
    run = train(resized_config(), "joint")
    assert all(np.isfinite(list(metrics.values())).all() for metrics in run.metrics)
    multipliers = [np.asarray(state.controlled.multipliers) for state in run.states]
    assert multipliers[0].shape == (4,) and not multipliers[0].any()
    assert multipliers[-1].all()


def test_parts_of_a_batch_give_the_multipliers_of_the_whole():
    whole, parts = (
        train(resized_config(accumulate_steps=k, gate__noise=False), "gates") for k in (1, 2)
    )
    for a, b in zip(whole.states[:2], parts.states[:2], strict=True):
        found, expected = (np.asarray(x.controlled.multipliers) for x in (b, a))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
