import math

import jax.numpy as jnp
import numpy as np

from urnet_jax.nets.tasks import Classification

TASK = Classification()


def test_cross_entropy_by_hand():
    # exp(ln 3) = 3 among 3 + 1 + 1 = 5: -ln(3/5); two equal logits of two: ln 2.
    logits = jnp.array([[math.log(3.0), 0.0, 0.0], [7.0, 7.0, -1e9]])
    loss = TASK.loss(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(loss, [math.log(5 / 3), math.log(2)], rtol=1e-6)


def test_cross_entropy_of_half_precision_logits_is_float32():
    loss = TASK.loss(jnp.array([[1.0, 2.0]], jnp.bfloat16), jnp.array([0]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [math.log(1 + math.e)], rtol=1e-6)


def test_distance_from_a_teacher_by_hand():
    # Softened by 2: e^(ln 9 / 2) = 3 and 1, so 3/4 and 1/4; the other says 1/2 and 1/2.
    teacher, said = jnp.array([[math.log(9.0), 0.0]]), jnp.array([[5.0, 5.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = TASK.distance(said, teacher, 2.0)
    np.testing.assert_allclose(found, [4 * divergence], rtol=1e-6)
    np.testing.assert_allclose(TASK.distance(teacher, teacher + 3, 2.0), [0], atol=1e-6)
    assert TASK.distance(said.astype(jnp.bfloat16), teacher, 2.0).dtype == jnp.float32


def test_the_answer_is_the_likeliest_class():
    logits, labels = jnp.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]), jnp.array([1, 2])
    np.testing.assert_array_equal(TASK.answer(logits), [1, 0])
    np.testing.assert_array_equal(TASK.correct(logits, labels), [True, False])
