import jax
import numpy as np
import pytest

from helpers.steps_runs import small_config
from urnet_jax.config import num_groups
from urnet_jax.train.draws import anchored_scale, annealed_scale, draw_scale

KEY = jax.random.key(0)


@pytest.mark.parametrize("groups", [1000, 1])
def test_scales_lie_in_their_range(groups):
    scale = np.asarray(draw_scale(KEY, 0.2, 0.9, groups, 1000))
    assert scale.shape == (1000,) and scale.dtype == np.float32
    assert scale.min() >= 0.2 and scale.max() <= 0.9


def test_per_sample_scales_are_uniform():
    scale = np.sort(np.asarray(draw_scale(KEY, 0.2, 0.9, 10_000, 10_000)))
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) once in a thousand keys.
    distance = np.abs((scale - 0.2) / 0.7 - (np.arange(10_000) + 0.5) / 10_000).max()
    assert distance < 0.0195
    assert len(np.unique(scale)) > 9_900


def test_per_step_scales_are_one_for_the_batch_and_uniform_over_steps():
    scales = jax.vmap(lambda key: draw_scale(key, 0.2, 0.9, 1, 3))(jax.random.split(KEY, 2000))
    scales = np.asarray(scales)
    np.testing.assert_array_equal(scales, scales[:, :1].repeat(3, axis=1))
    distance = np.abs((np.sort(scales[:, 0]) - 0.2) / 0.7 - (np.arange(2000) + 0.5) / 2000).max()
    assert distance < 1.95 / 2000**0.5


def test_a_group_of_samples_in_a_row_has_one_scale():
    scale = np.asarray(draw_scale(KEY, 0.2, 0.9, 8, 64)).reshape(8, 8)
    np.testing.assert_array_equal(scale, scale[:, :1].repeat(8, axis=1))
    assert len(np.unique(scale)) == 8 and scale.min() >= 0.2 and scale.max() <= 0.9


@pytest.mark.parametrize(("size", "groups"), [(128, 8), (12, 4), (7, 1)])
def test_groups_are_equal_parts_of_a_batch(size, groups):
    assert num_groups(small_config(scale__draw="group"), size) == groups
    assert draw_scale(KEY, 0.0, 1.0, groups, size).shape == (size,)


@pytest.mark.parametrize(
    ("progress", "mean"), [(0.0, 1.0), (0.25, 0.3 + 0.7 * 0.8535534), (0.5, 0.65), (1.0, 0.3)]
)
def test_an_annealed_scale_falls_along_half_a_cosine(progress, mean):
    exact = annealed_scale(KEY, progress, 0.3, 0.0, 1, 4)
    np.testing.assert_allclose(exact, np.full(4, mean), rtol=1e-6)
    noisy = np.asarray(annealed_scale(KEY, progress, 0.3, 0.1, 20_000, 20_000))
    assert noisy.min() >= 0 and noisy.max() <= 1
    if mean < 0.7:  # Else much of the noise is cut off at 1.
        assert noisy.mean() == pytest.approx(mean, abs=0.005)
        assert noisy.std() == pytest.approx(0.1, abs=0.005)


def test_annealing_noise_never_asks_for_more_than_everything():
    noisy = np.asarray(annealed_scale(KEY, 0.0, 0.3, 0.1, 1000, 1000))
    assert (noisy == 1).mean() == pytest.approx(0.5, abs=0.06)


def test_equal_bounds_fix_the_scale():
    np.testing.assert_array_equal(draw_scale(KEY, 0.5, 0.5, 4, 4), np.full(4, 0.5))


def test_what_is_drawn_above_one_is_one():
    scale = np.asarray(draw_scale(KEY, 0.2, 1.2, 10_000, 10_000))
    assert scale.max() == 1 and (scale == 1).mean() == pytest.approx(0.2, abs=0.015)
    assert np.median(scale) == pytest.approx(0.7, abs=0.015), "the others stay as they are"


def test_the_key_decides():
    first, again, other = (draw_scale(jax.random.key(n), 0.0, 1.0, 8, 8) for n in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.any(np.asarray(first) == np.asarray(other))


def test_every_anchor_is_asked_for_as_often():
    anchors = (0.2, 0.5, 0.9)
    scales = jax.vmap(lambda key: anchored_scale(key, anchors, 0.0, 8, 16))(
        jax.random.split(KEY, 600)
    )
    by_group = np.asarray(scales).reshape(600, 8, 2)
    np.testing.assert_array_equal(by_group[..., 0], by_group[..., 1])
    values, counts = np.unique(by_group[..., 0], return_counts=True)
    np.testing.assert_allclose(values, anchors, rtol=1e-6)
    # Each step has every anchor twice or thrice; which has three is drawn anew.
    per_step = np.stack([(by_group[..., 0] == value).sum(axis=1) for value in values])
    assert set(np.unique(per_step)) == {2, 3}
    assert np.all(np.abs(counts / counts.sum() - 1 / 3) < 0.05)


def test_more_anchors_than_groups_take_turns():
    anchors = tuple(np.linspace(0.1, 1.0, 10))
    scales = jax.vmap(lambda key: anchored_scale(key, anchors, 0.0, 1, 4))(
        jax.random.split(KEY, 2000)
    )
    counts = np.unique(np.asarray(scales)[:, 0], return_counts=True)[1]
    assert len(counts) == 10 and counts.min() > 130


def test_jitter_stays_near_its_anchor_and_in_range():
    scale = np.asarray(anchored_scale(KEY, (0.01, 0.5, 1.0), 0.05, 3000, 3000))
    assert scale.min() == 0 and scale.max() == 1
    distance = np.abs(scale[:, None] - np.array([0.01, 0.5, 1.0])).min(axis=1)
    assert 0.045 < distance.max() <= 0.05 + 1e-6
