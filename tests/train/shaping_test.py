"""Batch-shaping: the loss, its gradient, and what gates become that are trained by it alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from flax import nnx
from jax.sharding import Mesh
from sklearn.datasets import load_digits

from helpers.steps_runs import batches, small_config
from helpers.variables import init_variables
from urnet_jax import config as config_lib
from urnet_jax.nets.contract import GateInputs
from urnet_jax.nets.gates import ConditionalGate
from urnet_jax.nets.mode import Mode
from urnet_jax.train import shaping
from urnet_jax.train.objective import Along, make_loss
from urnet_jax.xla import sharding


def logit(x: Any) -> Any:
    return jnp.log(jnp.asarray(x) / (1 - jnp.asarray(x)))


def loss(logits: Any, alpha: float, beta: float, parts: int = 1) -> Any:
    return shaping.shaping_loss(logits, jnp.full(parts, alpha), jnp.full(parts, beta))


def test_the_loss_and_its_gradient_by_hand():
    # Beta(1, 1) is uniform: F(x) = x. In order the three are 0.2, 0.5, 0.9, and 1/4, 2/4, 3/4 are
    # due: distances 0.05, 0, -0.15. Of the gradient by a logit, -2/3 * distance * x (1 - x).
    logits = logit([[0.9], [0.2], [0.5]])
    value, gradient = jax.value_and_grad(loss)(logits, 1.0, 1.0)
    assert value == pytest.approx((0.05**2 + 0.15**2) / 3, rel=1e-5)
    by_hand = [[2 / 3 * 0.15 * 0.09], [-2 / 3 * 0.05 * 0.16], [0.0]]
    np.testing.assert_allclose(gradient, by_hand, atol=1e-7)
    # Beta(1, 2): F(x) = 1 - (1 - x)^2 is 0.36, 0.75, 0.99.
    value = loss(logits, 1.0, 2.0)
    assert value == pytest.approx((0.11**2 + 0.25**2 + 0.24**2) / 3, rel=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.4), (0.05, 0.95), (2.0, 5.0)])
def test_the_gradient_is_the_numeric_one(alpha, beta):
    """Of the same criterion in float64 by SciPy."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(24, 3)) * 3

    def reference(logits: np.ndarray) -> float:
        of_prior = scipy.special.betainc(alpha, beta, scipy.special.expit(np.sort(logits, axis=0)))
        return np.mean((np.arange(1, 25)[:, None] / 25 - of_prior) ** 2)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits, jnp.float32), alpha, beta)
    assert value == pytest.approx(reference(logits), rel=1e-4)
    numeric = np.zeros_like(logits)
    for at in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[at] = 1e-5
        numeric[at] = (reference(logits + step) - reference(logits - step)) / 2e-5
    np.testing.assert_allclose(gradient, numeric, rtol=2e-3, atol=1e-6)


def test_the_gradient_is_finite_where_the_density_is_not():
    logits = jnp.array([[-200.0], [-30.0], [0.0], [30.0], [200.0]])
    value, gradient = jax.value_and_grad(loss)(logits, 0.6, 0.4)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[np.array([0, 4])], 0, atol=1e-20)


def test_each_part_has_a_form_and_a_prior_of_its_own():
    logits = jax.random.normal(jax.random.key(0), (32, 4))
    halves = [loss(half, 0.6, 0.4) for half in (logits[:16], logits[16:])]
    np.testing.assert_allclose(loss(logits, 0.6, 0.4, parts=2), np.mean(halves), rtol=1e-5)
    alpha, beta = jnp.array([0.2, 0.7]), jnp.array([0.8, 0.3])
    halves = [loss(logits[:16], 0.2, 0.8), loss(logits[16:], 0.7, 0.3)]
    np.testing.assert_allclose(
        shaping.shaping_loss(logits, alpha, beta), np.mean(halves), rtol=1e-5
    )


def sharded(logits: np.ndarray, parts: int) -> tuple[Any, Any, int]:
    mesh = Mesh(sharding.in_order(jax.devices()), ("data",))
    split = sharding.split(mesh)
    step = jax.jit(
        jax.value_and_grad(lambda x: loss(x, 0.6, 0.4, parts)), in_shardings=split,
        out_shardings=(sharding.replicated(mesh), split),
    )  # fmt: skip
    program: Any = step.lower(jax.ShapeDtypeStruct(logits.shape, logits.dtype)).compile().as_text()
    value, gradient = step(jax.device_put(logits, split))
    gathers = program.count("all-gather(") + program.count("all-to-all(")
    return np.asarray(value), np.asarray(gradient), gathers


@pytest.mark.parametrize("parts", [1, 8])
def test_devices_shape_the_whole_batch_or_each_a_part(eight_devices, parts):
    """With one part the order is of the global batch; with as many as devices, none is told."""
    logits = np.asarray(jax.random.normal(jax.random.key(1), (64, 5)))
    value, gradient, gathers = eight_devices(sharded, logits, parts)
    expected = jax.value_and_grad(loss)(jnp.asarray(logits), 0.6, 0.4, parts)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=1e-7)
    assert (gathers > 0) == (parts == 1)


def test_gates_that_are_trained_by_it_alone_take_the_form_of_the_prior():
    """On brightness of sixteen parts of real digits; told on images that they were not trained on.

    Wanted: a distance of at most 0.1 by Kolmogorov's measure for each gate.
    """
    digits: Any = load_digits()
    images = digits.images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) / 16
    held, rest = jnp.asarray(images[:600], jnp.float32), jnp.asarray(images[600:], jnp.float32)
    make = nnx.vmap(lambda rngs: ConditionalGate(16, reduction=1, bias=0.5, normed=True, rngs=rngs))
    gates = make(nnx.Rngs(0).split(4))

    def logits(gates: Any, images: Any, running: bool) -> Any:
        mode = Mode(gates_batch_norm="running" if running else "batch")
        scale = jnp.ones(len(images))
        return nnx.vmap(lambda gate: gate(images, scale, mode)[:, 0], out_axes=1)(gates)

    optimizer = nnx.Optimizer(gates, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(gates: Any, optimizer: Any, images: Any) -> Any:
        gradient = nnx.grad(lambda g: loss(logits(g, images, False), 0.6, 0.4))(gates)
        optimizer.update(gates, gradient)

    order = np.random.default_rng(0)
    before = distances(logits(gates, held, False))
    for _ in range(300):
        step(gates, optimizer, rest[order.permutation(len(rest))[:256]])
    after = distances(logits(gates, held, True))
    assert min(before) > 0.1 > max(after), (before, after)


def distances(logits: Any) -> list[float]:
    """Kolmogorov's, of each gate's probabilities from Beta(0.6, 0.4)."""
    prior: Any = scipy.stats.beta(0.6, 0.4)
    found: list[Any] = [
        scipy.stats.ks_1samp(x, prior.cdf) for x in np.asarray(jax.nn.sigmoid(logits)).T
    ]
    return [result.statistic for result in found]


def shaped_config(**fields: Any) -> config_lib.Config:
    config = small_config(**{"scale__draw": "group", "shaping__weight": 3.0} | fields)
    config_lib.validate(config)
    return config


def objective(config: config_lib.Config, progress: float, scale: Any) -> float:
    params, stats = init_variables(config)
    batch = {**batches()[0], "inputs": GateInputs(scale, offset=OFFSET)}
    along = Along(jnp.float32(progress), None)
    return float(jax.jit(make_loss(config, "joint", "cpu"))({}, along, params, stats, batch)[0])


OFFSET = jax.random.normal(jax.random.key(2), (64, 3))
SCALE = jnp.repeat(jnp.linspace(0.2, 0.9, 8), 8)


def test_training_weighs_it_and_lets_it_fade():
    plain = objective(shaped_config(shaping__weight=0.0), 0.0, SCALE)

    def part(progress: float, **fields: Any) -> float:
        return objective(shaped_config(**fields), progress, SCALE) - plain

    whole = part(0.0)
    assert whole > 0.01
    assert part(0.7) == pytest.approx(whole, rel=1e-3)  # It stays, by default.
    assert part(0.0, shaping__weight=6.0) == pytest.approx(2 * whole, rel=1e-3)
    faded = [part(progress, shaping__fades_by=0.2) for progress in (0.0, 0.1, 0.2, 0.9)]
    assert faded == pytest.approx([whole, whole / 2, 0, 0], rel=1e-3, abs=1e-5)
    by_scale = part(0.0, shaping__mean="scale")
    assert by_scale > 0.01 and abs(by_scale - whole) > 1e-3


def test_the_l0_loss_rises_to_its_weight():
    plain = objective(shaped_config(shaping__weight=0.0), 0.0, SCALE)

    def part(progress: float, **fields: Any) -> float:
        config = shaped_config(shaping__weight=0.0, l0__weight=2.0, **fields)
        return objective(config, progress, SCALE) - plain

    whole = part(0.0)
    assert 0.5 < whole < 1.5  # About half of the gates are open.
    ramp = [part(p, l0__begins=0.2, l0__full=0.6) for p in (0.1, 0.2, 0.4, 0.6, 1.0)]
    assert ramp == pytest.approx([0, 0, whole / 2, whole, whole], rel=1e-3, abs=1e-5)


def test_the_mean_of_the_prior_is_s():
    """Gates whose probabilities are those of Beta(S, 1 - S), each group's S its own, cost least."""
    places = (np.arange(1, 9) / 9)[None, :, None]
    scale = np.linspace(0.2, 0.9, 8)[:, None, None]
    fitting = scipy.special.logit(scipy.special.betaincinv(scale, 1 - scale, places))
    logits = jnp.asarray(fitting.reshape(64, 1), jnp.float32)
    asked = shaped_config(shaping__mean="scale", shaping__alpha=0.5, shaping__beta=0.5)
    assert shaping.of_gates(asked, logits, SCALE, jnp.zeros(())) < 1e-8
    assert shaping.of_gates(asked, logits, SCALE[::-1], jnp.zeros(())) > 0.1
    whole = shaping.of_gates(asked, logits, jnp.ones(64), jnp.zeros(()))
    assert np.isfinite(whole)
