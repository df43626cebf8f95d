"""The confusion matrix and what follows from it; pictures of segmentations."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

from mobilevitv2_jax.evaluation.classification import Predictions
from mobilevitv2_jax.evaluation.metrics import (
    intersection_over_union,
    means,
    segmentation_metrics,
    segmentation_sums,
)
from mobilevitv2_jax.evaluation.pictures import overlay, palette, save_segmentations

CLASSES = 5


def random_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    logits = random.normal(size=(4, 9, 7, CLASSES)).astype(np.float32)
    labels = random.choice([*range(CLASSES), 255], size=(4, 9, 7)).astype(np.uint8)
    return logits, labels, np.array([1, 1, 0, 1], np.float32)


def test_the_confusion_matrix_and_the_iou_equal_those_of_scikit_learn():
    logits, labels, mask = random_case()
    sums = segmentation_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask), 255)
    counted = (labels != 255) & (mask > 0)[:, None, None]
    truth, predicted = labels[counted], logits.argmax(-1)[counted]
    expected = confusion_matrix(truth, predicted, labels=range(CLASSES))
    np.testing.assert_array_equal(sums["confusion"], expected)
    np.testing.assert_allclose(
        intersection_over_union(expected), jaccard_score(truth, predicted, average=None), rtol=1e-12
    )
    metrics = means(sums)
    assert metrics["miou"] == pytest.approx(jaccard_score(truth, predicted, average="macro"))
    assert metrics["pixel_accuracy"] == pytest.approx((truth == predicted).mean())
    shifted = logits[counted] - logits[counted].max(-1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(truth)), truth]
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)  # sums in float32


def test_a_hand_worked_case():
    # Truth 0 0 1 1, predicted 0 1 1 1: IoU 1/2 and 2/3.
    confusion = np.array([[1, 1], [0, 2]])
    np.testing.assert_allclose(intersection_over_union(confusion), [1 / 2, 2 / 3])
    assert segmentation_metrics(confusion) == pytest.approx(
        {"miou": 7 / 12, "pixel_accuracy": 0.75}
    )


def test_a_class_that_never_occurs_does_not_lower_the_mean():
    confusion = np.diag([3, 0, 5])
    assert np.isnan(intersection_over_union(confusion)[1])
    assert segmentation_metrics(confusion)["miou"] == 1.0


def test_labels_that_are_no_class_do_not_count():
    logits, labels, mask = random_case()
    labels[labels == 3] = 77
    sums = segmentation_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask), 255)
    assert int(sums["count"]) == int(sums["confusion"].sum())
    assert int(sums["confusion"][3].sum()) == 0


def test_the_palette_is_that_of_pascal_voc():
    # The first colours as the development kit publishes them.
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
    np.testing.assert_array_equal(palette()[:6], expected)
    np.testing.assert_array_equal(
        palette()[[15, 20, 255]], [(192, 128, 128), (0, 64, 128), (224, 224, 192)]
    )


def test_an_overlay_leaves_the_background_as_it_is():
    image = np.full((2, 2, 3), 100, np.uint8)
    classes = np.array([[0, 1], [2, 255]], np.uint8)
    out = overlay(image, classes, opacity=0.5)
    np.testing.assert_array_equal(out[0, 0], image[0, 0])
    np.testing.assert_array_equal(out[0, 1], [114, 50, 50])


def test_segmentations_are_drawn_as_a_png(tmp_path):
    random = np.random.RandomState(0)
    maps = random.randint(0, 3, (4, 16, 16)).astype(np.uint8)
    images = random.randint(0, 255, (4, 16, 16, 3)).astype(np.uint8)
    path = tmp_path / "picture.png"
    save_segmentations(path, Predictions(images, maps, maps), ("nothing", "a", "b"), "title")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 1000
