"""Losses against values worked by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from mobilevitv2_jax.models.losses import (
    binary_cross_entropy,
    classification_loss,
    cross_entropy,
    infer_problem_type,
    mean_cross_entropy,
)

# Softmax of (0, log 3) is (1/4, 3/4), of (log 4, 0) is (4/5, 1/5). Tolerance throughout:
# 1e-6, a few float32 roundings of numbers near 1.
LOGITS = np.array([[0, math.log(3)], [math.log(4), 0]], np.float32)
INTEGERS = ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_cross_entropy_takes_labels_of_every_integer_type(dtype):
    loss = classification_loss(LOGITS, np.array([1, 1], dtype), None)
    assert loss == pytest.approx((math.log(4 / 3) + math.log(5)) / 2, rel=1e-6)


def test_ignored_labels_count_neither_above_nor_below_the_line():
    assert mean_cross_entropy(LOGITS, np.array([1, -100])) == pytest.approx(
        math.log(4 / 3), rel=1e-6
    )
    assert mean_cross_entropy(LOGITS, np.array([255, 0]), ignored=255) == pytest.approx(
        math.log(5 / 4), rel=1e-6
    )


def test_a_batch_of_ignored_labels_has_loss_zero():
    assert mean_cross_entropy(LOGITS, np.array([-100, -100])) == 0


@pytest.mark.parametrize("label", [2, 1000, -1, -2])
def test_a_label_outside_the_classes_gives_nan(label):
    loss = classification_loss(LOGITS, np.array([0, label]), "single_label_classification")
    assert math.isnan(loss)


def test_label_smoothing_spreads_the_target_over_all_classes():
    """PyTorch: (1 - s) * nll + s * mean over the classes of their nll."""
    nll = np.log([[4, 4 / 3], [5 / 4, 5]])
    expected = 0.9 * nll[[0, 1], [1, 0]] + 0.1 * nll.mean(1)
    loss = cross_entropy(LOGITS, np.array([1, 0]), label_smoothing=0.1)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_binary_cross_entropy_of_each_logit_with_its_target():
    # sigmoid(log 3) is 3/4
    logits = np.array([math.log(3), math.log(3), 0], np.float32)
    loss = binary_cross_entropy(logits, np.array([1, 0, 0.5]))
    np.testing.assert_allclose(loss, np.log([4 / 3, 4, 2]), rtol=1e-6)
    assert np.isfinite(binary_cross_entropy(np.float32([500, -500]), np.float32([0, 1]))).all()


def test_multi_label_loss_is_the_mean_over_images_and_labels():
    targets = np.array([[0, 1], [1, 0]], np.float32)
    expected = np.mean([math.log(2), math.log(4 / 3), math.log(5 / 4), math.log(2)])
    assert classification_loss(LOGITS, targets, None) == pytest.approx(expected, rel=1e-6)


def test_regression_is_the_mean_squared_error():
    one = np.array([[1.0], [2.0]], np.float32)
    for targets in (np.array([0.0, 4.0]), np.array([[0.0], [4.0]])):
        assert classification_loss(one, targets, None) == pytest.approx(2.5)
    both = classification_loss(LOGITS, LOGITS + 2, "regression")
    assert both == pytest.approx(4)


def test_the_problem_type_follows_from_number_and_type_of_the_labels():
    assert infer_problem_type(1, jnp.zeros(2)) == "regression"
    assert infer_problem_type(2, jnp.zeros(2, jnp.uint8)) == "single_label_classification"
    assert infer_problem_type(2, jnp.zeros((2, 2))) == "multi_label_classification"


@pytest.mark.parametrize(
    ("problem_type", "shape"),
    [
        ("single_label_classification", (3,)),
        ("single_label_classification", (2, 1)),
        ("multi_label_classification", (2,)),
        ("multi_label_classification", (2, 3)),
        ("regression", (2,)),
        ("regression", (2, 1)),
    ],
)
def test_labels_of_the_wrong_shape_are_refused(problem_type, shape):
    with pytest.raises(ValueError, match=f"labels for {problem_type} must have shape"):
        classification_loss(LOGITS, np.zeros(shape), problem_type)


def test_losses_of_half_precision_logits_are_computed_in_float32():
    assert cross_entropy(jnp.asarray(LOGITS, jnp.bfloat16), np.array([0, 1])).dtype == jnp.float32
