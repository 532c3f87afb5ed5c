import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from urnet_jax.nets.gates import (
    ConditionalGate,
    activate,
    draw_kept,
    draw_noise,
    draw_sigmoid,
)
from urnet_jax.nets.layers import pool
from urnet_jax.nets.mode import Mode

LOGITS = jnp.array([-30.0, -1.0, -1e-6, -0.0, 0.0, 1e-6, 2.0, 30.0])
BATCH, BLOCKS = 2000, 5
SIZE = LOGITS.shape[0]
NEVER, ALWAYS = jnp.zeros(SIZE, bool), jnp.ones(SIZE, bool)


def drawn(p: float, draw, seed: int = 0) -> np.ndarray:
    return np.asarray(draw_sigmoid(jax.random.key(seed), p, draw, BATCH, BLOCKS))


def bound(p: float, size: int) -> float:
    """Four standard deviations of the share among `size` independent draws."""
    return 4 * (p * (1 - p) / size) ** 0.5


def test_hard_gates_open_at_a_logit_of_zero():
    np.testing.assert_array_equal(activate(LOGITS, NEVER), [0, 0, 0, 1, 1, 1, 1, 1])


def test_soft_gates_are_sigmoids():
    expected = 1 / (1 + np.exp(-np.asarray(LOGITS, np.float64)))
    np.testing.assert_allclose(activate(LOGITS, ALWAYS), expected, rtol=1e-6)


def test_each_sample_has_its_own_activation():
    mixed = activate(jnp.array([2.0, 2.0, -2.0]), jnp.array([True, False, False]))
    np.testing.assert_allclose(mixed, [1 / (1 + np.exp(-2.0)), 1, 0], rtol=1e-6)


def test_only_the_sigmoid_has_a_gradient():
    def total(logits, use_sigmoid):
        return activate(logits, use_sigmoid).sum()

    np.testing.assert_array_equal(jax.grad(total)(LOGITS, NEVER), 0)
    sigmoid = 1 / (1 + np.exp(-np.asarray(LOGITS, np.float64)))
    gradient = jax.grad(total)(LOGITS, ALWAYS)
    np.testing.assert_allclose(gradient, sigmoid * (1 - sigmoid), rtol=1e-5, atol=1e-12)


def test_straight_through_a_step_has_the_gradient_of_the_sigmoid():
    def total(logits):
        return activate(logits, NEVER, straight_through=True).sum()

    np.testing.assert_array_equal(
        activate(LOGITS, NEVER, straight_through=True), activate(LOGITS, NEVER)
    )
    sigmoid = 1 / (1 + np.exp(-np.asarray(LOGITS, np.float64)))
    np.testing.assert_allclose(
        jax.grad(total)(LOGITS), sigmoid * (1 - sigmoid), rtol=1e-5, atol=1e-12
    )


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.0])
def test_with_noise_a_step_opens_with_the_probability_of_its_sigmoid(logit):
    noise = draw_noise(jax.random.key(0), BATCH, BLOCKS)
    opened = activate(logit + noise, jnp.zeros((BATCH, BLOCKS), bool))
    probability = 1 / (1 + np.exp(-logit))
    assert abs(opened.mean() - probability) <= bound(probability, BATCH * BLOCKS)


def kept(scale: float, seed: int = 0) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), BATCH)
    return np.asarray(draw_kept(keys, jnp.full(BATCH, scale), BLOCKS))


@pytest.mark.parametrize("scale", [0.0, 0.2, 0.37, 0.5, 1.0])
def test_random_drop_leaves_the_share_that_was_asked_for(scale):
    found = kept(scale)
    assert set(np.unique(found)) <= {0, 1}
    count = found.sum(axis=1)
    assert set(np.unique(count)) <= {np.floor(scale * BLOCKS), np.ceil(scale * BLOCKS)}
    assert abs(count.mean() / BLOCKS - scale) <= 4 * 0.5 / BLOCKS / BATCH**0.5
    # No block is dropped more often than another.
    assert np.abs(found.mean(axis=0) - scale).max() <= bound(scale, BATCH) + 1e-6


def test_random_drop_at_a_larger_scale_keeps_what_a_smaller_one_keeps():
    few, many = kept(0.3), kept(0.7)
    assert (few <= many).all() and few.sum() < many.sum()
    assert not np.array_equal(kept(0.3), kept(0.3, seed=1))


@pytest.mark.parametrize("draw", ["gate", "sample", "step"])
@pytest.mark.parametrize(("p", "expected"), [(0.0, False), (1.0, True)])
def test_the_limits_of_p(draw, p, expected):
    np.testing.assert_array_equal(drawn(p, draw), np.full((BATCH, BLOCKS), expected))


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("draw", ["gate", "sample"])
def test_the_share_of_sigmoids_is_p(p, draw):
    draws = drawn(p, draw)
    if draw == "sample":
        np.testing.assert_array_equal(draws, draws[:, :1].repeat(BLOCKS, axis=1))
        draws = draws[:, 0]
    assert abs(draws.mean() - p) < bound(p, draws.size)


def test_a_step_shares_one_draw():
    keys = jax.random.split(jax.random.key(1), BATCH)
    draws = np.asarray(jax.vmap(lambda key: draw_sigmoid(key, 0.1, "step", 2, 3))(keys))
    np.testing.assert_array_equal(draws, np.broadcast_to(draws[:, :1, :1], draws.shape))
    assert abs(draws[:, 0, 0].mean() - 0.1) < bound(0.1, BATCH)


def test_gates_are_drawn_independently_of_one_another():
    correlation = np.corrcoef(drawn(0.5, "gate").T)
    assert np.abs(correlation - np.eye(BLOCKS)).max() < 4 / BATCH**0.5
    assert len(np.unique(drawn(0.5, "gate"), axis=0)) == 2**BLOCKS


@pytest.mark.parametrize("draw", ["gate", "sample"])
def test_the_key_decides(draw):
    first = drawn(0.5, draw, seed=1)
    np.testing.assert_array_equal(first, drawn(0.5, draw, seed=1))
    assert np.mean(first != drawn(0.5, draw, seed=2)) == pytest.approx(0.5, abs=0.1)


def test_a_block_draws_the_same_in_a_shallower_network():
    shallow = draw_sigmoid(jax.random.key(0), 0.5, "gate", BATCH, 2)
    np.testing.assert_array_equal(drawn(0.5, "gate")[:, :2], shallow)


def test_the_gate_has_the_units_of_its_reduction_rate():
    gate = ConditionalGate(6, reduction=4, bias=0.25, rngs=nnx.Rngs(0))
    assert gate.fc1.kernel.shape == (12, 1)  # 2C -> max(1, 6 // 4)
    assert gate.fc2.kernel.shape == (1, 1)
    assert gate.fc2.bias is not None and gate.fc2.bias[...] == 0.25


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gate_against_numpy(dtype):
    rng = np.random.default_rng(0)
    w1, b1, w2, b2 = (rng.normal(size=size) for size in [(12, 3), 3, (3, 1), 1])
    weights = {"fc1": {"kernel": w1, "bias": b1}, "fc2": {"kernel": w2, "bias": b2}}
    gate = nnx.eval_shape(lambda: ConditionalGate(6, reduction=2, bias=0.0, rngs=nnx.Rngs(0)))
    nnx.update(gate, nnx.State(jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), weights)))
    features = jnp.asarray(rng.normal(size=(5, 4, 3, 6)), dtype)
    scale = np.linspace(0, 1, 5)
    pooled = np.asarray(features, np.float64).mean(axis=(1, 2))
    asked = np.repeat(scale[:, None], 6, axis=1)
    hidden = np.maximum(np.concatenate([pooled, asked], axis=1) @ w1 + b1, 0)
    logits = gate(pool(features), jnp.asarray(scale, jnp.float32))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, hidden @ w2 + b2, rtol=1e-5, atol=1e-6)
    assert 0 < np.mean(hidden > 0) < 1


def test_a_gate_of_normalised_features_sees_by_what_images_differ():
    rng = np.random.default_rng(0)
    differing = rng.normal(size=(64, 6))
    gate = ConditionalGate(6, reduction=2, bias=0.0, normed=True, rngs=nnx.Rngs(0))
    scale = jnp.full(64, 0.5)
    norm = gate.norm
    assert norm is not None

    def logits(summary: np.ndarray, mode: Mode) -> np.ndarray:
        return np.asarray(gate(jnp.asarray(summary, jnp.float32), scale, mode))

    batch = Mode(gates_batch_norm="batch")
    # Small beside the size that all images share, and another one for each channel.
    seen = 10 + np.arange(6) + 0.1 * np.arange(1, 7) * differing
    expected = logits(differing, batch)
    np.testing.assert_allclose(logits(seen, batch), expected, rtol=0.02, atol=0.02)
    assert expected.std() > 0.1

    for _ in range(200):
        logits(seen, batch)
    np.testing.assert_allclose(norm.mean[...], seen.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(norm.var[...], seen.var(axis=0), rtol=1e-3)
    # Alone, an image is normalised by what images were before.
    alone = [logits(row[None].repeat(64, axis=0), Mode())[0] for row in seen[:3]]
    np.testing.assert_allclose(alone, logits(seen, Mode())[:3], rtol=1e-5)
