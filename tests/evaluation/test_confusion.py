"""Which classes are taken for which: counted over a padded set, written, and drawn."""

import csv
import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mobilevitv2_jax.evaluation import confusion

# Two of three cats are recognised, one is taken for a dog; a fox never occurs.
COUNTS = np.array([[2, 1, 0], [0, 4, 0], [0, 0, 0]])
NAMES = ("cat", "dog", "fox")


def test_every_example_counts_once_and_padding_does_not():
    predictions = [0, 1, 2, 2, 1, 0]
    labels, mask = [0, 1, 1, 2, 0, 0], [1, 1, 1, 1, 1, 0]
    batches = [
        {
            "image": np.eye(3, dtype=np.float32)[predictions[part]],
            "label": np.array(labels[part], np.int32),
            "mask": np.array(mask[part], np.float32),
        }
        for part in (slice(0, 3), slice(3, 6))
    ]

    def step(parameters, statistics, batch):
        return {}, batch["image"]

    def put(batch):
        return {name: jnp.asarray(value) for name, value in batch.items()}

    found = confusion.count(step, {}, {}, batches, put, 3)
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 1, 1], [0, 0, 1]])
    assert found.sum() == sum(mask)


def test_the_accuracy_of_a_class_is_over_its_own_examples():
    np.testing.assert_allclose(confusion.accuracies(COUNTS), [2 / 3, 1, np.nan])


def test_the_csv_has_a_row_for_each_true_class():
    rows = list(csv.reader(io.StringIO(confusion.to_csv(COUNTS, NAMES))))
    assert rows == [
        ["class", "accuracy", "cat", "dog", "fox"],
        ["cat", "0.6667", "2", "1", "0"],
        ["dog", "1.0000", "0", "4", "0"],
        ["fox", "nan", "0", "0", "0"],
    ]


@pytest.mark.parametrize("classes", [2, 30, pytest.param(100, marks=pytest.mark.slow)])
def test_the_picture_shows_shares_of_the_true_class(tmp_path, classes):
    counts = 20 * np.eye(classes, dtype=np.int64)
    names = [f"class {number}" for number in range(classes)]
    confusion.save(tmp_path, counts, names, "title")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.format == "PNG"
        shown = np.asarray(picture.convert("RGB"))
    darkest, lightest = ((8, 48, 107), (247, 251, 255))  # of matplotlib's "Blues"
    diagonal, others = ((shown == colour).all(-1).sum() for colour in (darkest, lightest))
    # One cell of each row is on the diagonal; counts are written over it, and the scale has both.
    assert 0.5 * others < diagonal * (classes - 1) < 2 * others
    assert (tmp_path / "confusion.csv").exists()
