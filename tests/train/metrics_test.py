import jax
import jax.numpy as jnp
import numpy as np
import pytest

from urnet_jax.train.metrics import TrainMetrics


def step(correct: list[float], loss: float) -> TrainMetrics:
    per_sample = jnp.array(correct)
    return TrainMetrics.single_from_model_output(
        loss=jnp.array(loss),
        task_loss=per_sample + 1,
        aux_loss=jnp.array(loss / 4),
        distill_loss=per_sample + 2,
        correct_whole=1 - per_sample,
        scale_loss=jnp.array(loss / 2),
        correct=per_sample,
        usage=per_sample / 4,
        scale=per_sample / 2,
        gradient_norm=jnp.array(3.0),
        state_norm=jnp.array(5.0),
    )


def test_merged_steps_are_means_over_all_samples():
    merged = step([1, 1, 1, 0], loss=1.0).merge(step([0, 0], loss=4.0))
    assert {name: float(value) for name, value in merged.compute().items()} == pytest.approx(
        {
            "top1": 3 / 6,  # of samples, not of steps: (3/4 + 0) / 2 would be 3/8
            "task_loss": 9 / 6,
            "aux_loss": 5 / 8,
            "distill_loss": 15 / 6,
            "top1_whole": 3 / 6,
            "usage": 3 / 24,
            "scale": 3 / 12,
            "loss": 5 / 2,  # a step has one loss
            "scale_loss": 5 / 4,
            "gradient_norm": 3,
            "state_norm": 5,
        }
    )


def test_the_order_of_merging_does_not_matter():
    a, b, c = step([1, 0], 1.0), step([1], 2.0), step([0, 0, 0], 5.0)
    left, right = a.merge(b).merge(c).compute(), c.merge(b.merge(a)).compute()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), left, right)


def test_metrics_pass_through_jit():
    merged = jax.jit(lambda a, b: a.merge(b))(step([1, 0], 1.0), TrainMetrics.empty())
    assert merged.compute()["top1"] == 0.5
