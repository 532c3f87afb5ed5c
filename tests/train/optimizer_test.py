import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from configs.digits import phase
from urnet_jax.config import Config
from urnet_jax.nets import network
from urnet_jax.nets.architecture import Architecture
from urnet_jax.nets.mode import Build
from urnet_jax.nets.resnet import ResNet
from urnet_jax.phases import PHASES
from urnet_jax.train import optimizer
from urnet_jax.train.state import join, split_trained

ARCH = Architecture("cifar", 14, 3, image_size=8, width=4, shortcut="B")
STEPS_PER_EPOCH = 10
PAIR = jnp.array([2.0, -4.0])
LINEAR = {"kernel": PAIR, "bias": PAIR}
NORM = {"scale": PAIR, "bias": PAIR}
SMALL = {"conv1": {"kernel": PAIR}, "bn1": NORM, "stage1": {"body": {"gate": {"fc1": LINEAR}}}}


def section(**fields: Any) -> Config:
    """Ten epochs of ten steps, the first of them a warm-up to 0.1; no decay, no clipping."""
    plain: dict[str, Any] = {"weight_decay": 0.0, "clip_norm": 0.0}
    config = phase(epochs=10.0, learning_rate=0.1)
    config.update(plain | fields)
    return config


def rates(steps: list[int], **fields: Any) -> list[float]:
    schedule = optimizer.make_schedule(section(**fields), STEPS_PER_EPOCH)
    return [float(np.asarray(schedule(step))) for step in steps]


@functools.cache
def parameters() -> dict[str, Any]:
    """Of a network, as shapes."""
    abstract = nnx.eval_shape(lambda: ResNet(ARCH, rngs=nnx.Rngs(0)))
    return nnx.to_pure_dict(nnx.state(abstract, nnx.Param))


def gate_paths(tree: Any) -> frozenset[tuple[str, ...]]:
    return frozenset(path for path in traverse_util.flatten_dict(tree) if "gate" in path)


def flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")


def updates(params: Any, grads: list[Any], **fields: Any) -> list[dict[str, Any]]:
    """What each of several steps adds to the parameters, by name."""
    tx = optimizer.make_optimizer(section(**fields), STEPS_PER_EPOCH, gate_paths(params))
    state, found = tx.init(params), []
    for grad in grads:
        update, state = tx.update(grad, state, params)
        found.append(flat(update))
    return found


def constant(**fields: Any) -> dict[str, Any]:
    defaults = {"schedule": "constant", "warmup_epochs": 0.0, "gate_learning_rate_factor": 1.0}
    return defaults | {"momentum": 0.0} | fields


def test_warmup_is_linear_and_moves_from_the_first_step():
    # The n-th of ten steps takes n tenths of the peak; the eleventh is cosine's first.
    assert rates([0, 1, 4, 9, 10]) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.1])


def test_cosine_ends_at_the_final_rate():
    # 90 steps after the warm-up: a half of the way at step 55, a third at 40, where the cosine of
    # 60 degrees leaves 0.01 + 0.09 * (1 + 1/2) / 2.
    found = rates([40, 55, 100, 1000], final_learning_rate=0.01)
    assert found == pytest.approx([0.0775, 0.055, 0.01, 0.01])
    assert rates([55, 99, 100])[0] == pytest.approx(0.05)
    assert 0 < rates([99])[0] < 1e-4 and rates([100])[0] == pytest.approx(0, abs=1e-9)


def test_steps_drop_at_their_fractions():
    found = rates([9, 49, 50, 74, 75, 99], schedule="step")
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    found = rates([0, 24, 25, 99], schedule="step", step_fractions=(0.25,), step_factor=0.5,
                  warmup_epochs=0.0)  # fmt: skip
    assert found == pytest.approx([0.1, 0.1, 0.05, 0.05])
    # Two fractions of a short phase may fall on one step, which then drops twice.
    found = rates([7, 8], schedule="step", epochs=1.0, step_fractions=(0.78, 0.82))
    assert found == pytest.approx([0.1, 0.001])


def test_constant_stays():
    assert rates([0, 10, 99], schedule="constant") == pytest.approx([0.01, 0.1, 0.1])
    assert rates([0, 99], schedule="constant", warmup_epochs=0.0) == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_phases_of_few_steps_reach_their_peak(schedule: str):
    # The warm-up takes at most half of the phase: none of 1 step, 1 of 3, 2 of 4.
    few = {"schedule": schedule, "step_fractions": (0.99,)}
    assert max(rates([0], epochs=0.1, **few)) == pytest.approx(0.1)
    assert rates([0, 1], epochs=0.3, **few) == pytest.approx([0.1, 0.1])
    assert rates([0, 1, 2], epochs=0.4, **few) == pytest.approx([0.05, 0.1, 0.1])


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_a_rate_of_zero_stays_zero(schedule: str):
    assert rates([0, 20, 99], schedule=schedule, learning_rate=0.0) == [0, 0, 0]


@pytest.mark.parametrize(
    ("epochs", "steps"), [(0.0, 0), (0.01, 1), (1.0, 22), (2.0, 45), (10.0, 225)]
)
def test_number_of_steps(epochs: float, steps: int):
    assert optimizer.num_steps(epochs, 22.453) == steps


@pytest.mark.parametrize("name", PHASES)
def test_each_phase_moves_its_own_parameters(name: str):
    trained, frozen = split_trained(parameters(), name, network.gate_paths(ARCH, Build()))
    gates = {path for path in flat(parameters()) if "gate" in path.split("/")}
    backbone = flat(parameters()).keys() - gates
    # Four arrays of each gate; a stage's stacked bodies are one.
    assert len(gates) == 3 * 2 * 4
    moved = {"pretrain": backbone, "gates": gates, "joint": backbone | gates}[name]
    assert flat(trained).keys() == moved
    assert flat(frozen).keys() == (gates | backbone) - moved
    joined = join(trained, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(parameters())
    assert all(x is y for x, y in zip(
        jax.tree.leaves(joined), jax.tree.leaves(parameters()), strict=True
    ))  # fmt: skip


def test_weight_decay_is_for_kernels_outside_the_gates():
    shapes, decay = parameters(), section(**constant(weight_decay=1.0))
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    tx = optimizer.make_optimizer(decay, STEPS_PER_EPOCH, gate_paths(shapes))
    update, _ = tx.update(jax.tree.map(jnp.zeros_like, ones), tx.init(ones), ones)
    mask = {path: bool(np.any(value != 0)) for path, value in flat(update).items()}
    convs = [f"stage{i}/{part}/conv{n}" for i in (1, 2, 3) for part in ("entry", "body")
             for n in (1, 2)]  # fmt: skip
    convs += ["conv1", "stage2/entry/downsample_conv", "stage3/entry/downsample_conv"]
    assert mask.keys() == flat(parameters()).keys()
    assert {path for path, decays in mask.items() if decays} == {
        f"{name}/kernel" for name in [*convs, "fc"]
    }


def test_weight_decay_by_hand():
    zeros = jax.tree.map(jnp.zeros_like, SMALL)
    (update,) = updates(SMALL, [zeros], **constant(weight_decay=0.01))
    # A step of 0.1 along 0.01 of the weights 2 and -4.
    np.testing.assert_allclose(update.pop("conv1/kernel"), [-0.002, 0.004], rtol=1e-6)
    assert len(update) == 4
    for value in update.values():
        np.testing.assert_array_equal(value, 0)


def test_nesterov_momentum_by_hand():
    # Velocity v = g, then 0.9 v + g = 1.9 g; a step takes g + 0.9 v: 1.9 g, then 2.71 g.
    params, grad = {"bias": jnp.zeros(2)}, {"bias": jnp.array([1.0, -2.0])}
    first, second = updates(params, [grad, grad], **constant(momentum=0.9))
    np.testing.assert_allclose(first["bias"], [-0.19, 0.38], rtol=1e-6)
    np.testing.assert_allclose(second["bias"], [-0.271, 0.542], rtol=1e-6)


def test_clipping_sees_the_whole_gradient_before_weight_decay():
    # Norm 5 = sqrt(3^2 + 4^2) comes down to 1, direction kept; decay of 0.5 * 2 is added after.
    params = {"fc": {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}}
    grad = {"fc": {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}}
    (update,) = updates(params, [grad], **constant(clip_norm=1.0, weight_decay=0.5))
    np.testing.assert_allclose(update["fc/kernel"], [-0.1 * (0.6 + 1)], rtol=1e-6)
    np.testing.assert_allclose(update["fc/bias"], [-0.1 * 0.8], rtol=1e-6)
    short = jax.tree.map(lambda g: g / 10, grad)
    (update,) = updates(params, [short], **constant(clip_norm=1.0))
    np.testing.assert_allclose(update["fc/bias"], [-0.04], rtol=1e-6)
    (update,) = updates(params, [grad], **constant(clip_norm=0.0))
    np.testing.assert_allclose(update["fc/bias"], [-0.4], rtol=1e-6)


def test_the_gate_factor_multiplies_the_gates_steps_alone():
    grads = [jax.tree.map(jnp.cos, SMALL), jax.tree.map(jnp.sin, SMALL)]
    fields: dict[str, Any] = {"weight_decay": 1e-3, "clip_norm": 1.0}
    plain = updates(SMALL, grads, gate_learning_rate_factor=1.0, **fields)
    faster = updates(SMALL, grads, gate_learning_rate_factor=10.0, **fields)
    for one, other in zip(plain, faster, strict=True):
        for path, value in one.items():
            factor = 10 if "gate" in path.split("/") else 1
            np.testing.assert_array_equal(other[path], np.float32(factor) * value)


def test_a_phase_trains_a_part_of_the_tree():
    trained, _ = split_trained(SMALL, "gates", gate_paths(SMALL))
    (update,) = updates(trained, [trained], **constant())
    assert update.keys() == {"stage1/body/gate/fc1/kernel", "stage1/body/gate/fc1/bias"}
    for path, value in update.items():
        np.testing.assert_allclose(value, -0.1 * flat(SMALL)[path], rtol=1e-6)
