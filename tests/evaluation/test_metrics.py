"""The sums behind top-1, top-5 and loss, worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilevitv2_jax.evaluation.metrics import classification_sums, means

SUMS = jax.jit(classification_sums)


def sums(logits, labels, mask=None):
    mask = np.ones(len(labels)) if mask is None else mask
    found = SUMS(
        np.asarray(logits, np.float32), np.asarray(labels, np.int32), np.asarray(mask, np.float32)
    )
    return {name: float(value) for name, value in found.items()}


def of_one(logits, label):
    """Returns (top-1, top-5) of a single example."""
    found = sums([logits], [label])
    return found["top1"], found["top5"]


def test_an_example_counts_in_the_top_k_if_fewer_than_k_classes_score_higher():
    logits = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    assert [of_one(logits, label) for label in range(7)] == [
        *((1, 1), (0, 1), (0, 1), (0, 1), (0, 1)),
        *((0, 0), (0, 0)),
    ]


def test_ties_count_against_the_model():
    assert of_one([1.0, 1.0, 0.0, 0.0, 0.0, 0.0], 0) == (0, 1)  # may be second
    assert of_one([1.0] * 5 + [0.0], 0) == (0, 1)  # may be fifth
    assert of_one([1.0] * 6 + [0.0], 0) == (0, 0)  # may be sixth
    assert of_one([0.0] * 10, 3) == (0, 0)  # a model that says nothing


def test_the_loss_is_the_cross_entropy_without_smoothing():
    found = sums([[np.log(2.0), 0.0, 0.0], [0.0, 0.0, 0.0]], [0, 2])
    # Probabilities 2/4 and 1/3; float32.
    assert found["loss"] == pytest.approx(np.log(2) + np.log(3), rel=1e-6)


def test_what_the_mask_leaves_out_is_in_no_sum_even_if_it_is_nan():
    logits = [[3.0, 0.0], [np.nan, 0.0], [0.0, 3.0]]
    assert sums(logits, [0, 1, 0], [1, 0, 0]) == sums(logits[:1], [0])
    assert sums(logits, [0, 1, 0], [1, 0, 1])["count"] == 2


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("where", ["true", "other"])
def test_a_nan_among_the_scores_is_wrong_and_shows_in_the_loss(classes, where):
    logits = np.zeros(classes)
    logits[0] = 5.0
    logits[0 if where == "true" else 1] = np.nan
    found = sums([logits], [0])
    assert (found["top1"], found["top5"], found["count"]) == (0, 0, 1)
    assert np.isnan(found["loss"])


@pytest.mark.parametrize("label", [10, 99, -1])
def test_a_label_outside_the_classes_is_wrong_and_shows_in_the_loss(label):
    found = sums([np.arange(10.0)], [label])
    assert (found["top1"], found["top5"]) == (0, 0)
    assert np.isnan(found["loss"])


def test_with_fewer_than_five_classes_every_example_is_in_the_top_five():
    logits = [[3.0, 2.0, 1.0]] * 3
    found = sums(logits, [0, 1, 2])
    assert (found["top1"], found["top5"]) == (1, 3)


def test_scores_in_half_precision_are_summed_in_float32():
    logits = jnp.asarray([[300.0, 299.0]], jnp.bfloat16)
    found = SUMS(logits, np.asarray([0], np.int32), np.ones(1, np.float32))
    assert found["loss"].dtype == jnp.float32


def test_means_are_the_sums_over_the_count():
    assert means({"loss": 3.0, "top1": 1.0, "top5": 2.0, "count": 4.0}) == {
        "loss": 0.75,
        "top1": 0.25,
        "top5": 0.5,
    }


def test_no_example_at_all_is_an_error():
    with pytest.raises(ValueError, match="no example was evaluated"):
        means(sums([[1.0, 0.0]], [0], [0]))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    examples=st.integers(1, 20),
    batch_size=st.sampled_from([4, 8]),  # few shapes: each is a compilation
)
def test_splitting_into_padded_batches_does_not_change_the_sums(seed, examples, batch_size):
    random = np.random.RandomState(seed)
    # Few values, so that there are ties.
    logits = random.randint(0, 4, (24, 7)).astype(np.float32)
    labels = random.randint(0, 7, 24)
    mask = (np.arange(24) < examples).astype(np.float32)
    whole = sums(logits, labels, mask)
    parts = [
        sums(*(array[start : start + batch_size] for array in (logits, labels, mask)))
        for start in range(0, 24, batch_size)
    ]
    for name in ("top1", "top5", "count"):
        assert sum(part[name] for part in parts) == whole[name]
    # Float32 sums in another order.
    assert sum(part["loss"] for part in parts) == pytest.approx(whole["loss"], rel=1e-5)
