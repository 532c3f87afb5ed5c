import math

import jax
import jax.numpy as jnp
import numpy as np

from urnet_jax.nets.tasks import MIOU, TOP1, Classification, Segmentation, measure_of, of_classes

TASK, MAPS = Classification(), Segmentation()


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


def test_top1_of_counts_that_are_added_up():
    logits, labels = jnp.array([[0.0, 2.0], [3.0, 0.0], [0.0, 1.0]]), jnp.array([1, 1, 1])
    counts = np.asarray(TASK.counts(logits, labels))
    np.testing.assert_array_equal(counts, [[1, 1], [0, 1], [1, 1]])
    assert TASK.score(counts.sum(axis=0)) == 100 * 2 / 3
    assert math.isnan(TASK.score(np.zeros(2, int)))


def said(answers: list[list[list[int]]], classes: int = 3) -> jax.Array:
    """Logits whose likeliest classes are these, [B, H, W]."""
    return 5.0 * jax.nn.one_hot(jnp.array(answers), classes)


def test_maps_are_counted_without_the_pixels_that_are_ignored():
    labels = jnp.array([[[0, 1], [1, -1]], [[-1, -1], [-1, -1]]])
    prediction = said([[[0, 1], [0, 2]], [[0, 1], [2, 0]]])
    counts = np.asarray(MAPS.counts(prediction, labels))
    np.testing.assert_array_equal(counts[0], [[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(counts[1], np.zeros((3, 3)))
    # Of class 0 one pixel in both of two; of 1 one of two; of 2 there are none.
    np.testing.assert_allclose(of_classes(counts[0]), [50, 50, np.nan])
    assert MAPS.score(counts.sum(axis=0)) == 50
    assert math.isnan(MAPS.score(counts[1]))
    np.testing.assert_allclose(MAPS.correct(prediction, labels), [2 / 3, 0])


def test_miou_is_what_scikit_learn_makes_of_the_same_confusion():
    from sklearn.metrics import confusion_matrix, jaccard_score

    rng = np.random.default_rng(0)
    labels, answers = rng.integers(-1, 4, (3, 9, 7)), rng.integers(0, 4, (3, 9, 7))
    counts = np.asarray(MAPS.counts(said(answers.tolist(), 4), jnp.asarray(labels))).sum(axis=0)
    counted = labels >= 0
    expected = confusion_matrix(labels[counted], answers[counted])
    np.testing.assert_array_equal(counts, expected)
    of_each = jaccard_score(labels[counted], answers[counted], average="macro")
    assert abs(MAPS.score(counts) - 100 * of_each) < 1e-9


def test_the_loss_of_maps_is_the_mean_over_labelled_pixels():
    logits = jnp.array([[[[math.log(3.0), 0.0, 0.0], [9.0, 0.0, 0.0], [1.0, 1.0, -1e9]]]])
    loss = MAPS.loss(logits, jnp.array([[[0, -1, 1]]]))
    np.testing.assert_allclose(loss, [(math.log(5 / 3) + math.log(2)) / 2], rtol=1e-6)
    np.testing.assert_array_equal(MAPS.loss(logits, jnp.full((1, 1, 3), -1)), [0])
    # What is ignored has no gradient either.
    slopes = jax.grad(lambda x: MAPS.loss(x, jnp.array([[[0, -1, 1]]])).sum())(logits)
    assert not np.asarray(slopes[0, 0, 1]).any() and np.asarray(slopes[0, 0, 0]).any()


def test_distance_of_maps_is_the_mean_over_pixels():
    teacher, other = jnp.array([[math.log(9.0), 0.0]]), jnp.array([[5.0, 5.0]])
    of_one = TASK.distance(other, teacher, 2.0)
    said_map, asked_map = (jnp.stack([a[0], teacher[0]])[None, None] for a in (other, teacher))
    np.testing.assert_allclose(MAPS.distance(said_map, asked_map, 2.0), of_one / 2, rtol=1e-6)


def test_the_measure_of_a_table_is_found_by_its_columns():
    assert measure_of(["scale", "miou_percent"]) == MIOU and MIOU.title == "mIoU"
    assert measure_of(["scale", "top1_percent"]) == TOP1 and TOP1.column == "top1_percent"
    assert measure_of(["miou_percent", "pixels_right_percent"]) == MIOU
    assert measure_of(["scale", "f1_percent"]).title == "f1"  # of a task of your own
    assert (TOP1.at_the_start, MIOU.at_the_start) == ("Top-1", "mIoU")
