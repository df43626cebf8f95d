"""Evaluation over a whole set: what is counted, how often, and with which weights.

The model is a table: an image shows the number of its row, from which its scores are read.
"""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mobilevitv2_jax.data.augment import Evaluate
from mobilevitv2_jax.data.loader import evaluation_batches
from mobilevitv2_jax.evaluation.classification import evaluate, predict
from mobilevitv2_jax.evaluation.metrics import classification_sums

EXAMPLES, CLASSES = 11, 6
LABELS = np.arange(EXAMPLES) % CLASSES


@jax.jit
def table_step(parameters, statistics, batch):
    assert batch.keys() == {"image", "label", "mask"}
    logits = parameters["scores"][batch["image"][:, 0, 0, 0]] + statistics["shift"]
    sums = classification_sums(logits, batch["label"], batch["mask"])
    return sums, jax.nn.softmax(logits)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Encoded pictures, each showing its own number; some are cut off."""

    broken: tuple[int, ...] = ()
    name: str = "pictures"
    split: str = "test"
    fingerprint: str = "pictures/test"
    class_names: tuple[str, ...] = tuple("abcdef")

    def __len__(self):
        return EXAMPLES

    def __getitem__(self, index):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(buffer, "PNG")
        data = buffer.getvalue()
        return {"image": data[:20] if index in self.broken else data, "label": LABELS[index]}


def batches(batch_size, broken=()):
    return evaluation_batches(
        Pictures(broken), Evaluate(8, 8, "bilinear"), batch_size=batch_size, threads=0
    )


def right_for(examples):
    """Returns weights with which the model is right for these examples, and wrong for others."""
    scores = np.zeros((EXAMPLES, CLASSES), np.float32)
    for index in range(EXAMPLES):
        scores[index, (LABELS[index] + (index not in examples)) % CLASSES] = 5.0
    return {"scores": jnp.asarray(scores)}, {"shift": jnp.zeros(())}


@pytest.mark.parametrize("batch_size", [1, 4, 11, 32])
def test_every_example_is_counted_once_whatever_the_batch(batch_size):
    metrics, corrupt = evaluate(
        table_step, {"eval": right_for({0, 1, 10})}, batches(batch_size), jax.device_put
    )
    assert metrics["eval/top1"] == pytest.approx(3 / 11, rel=1e-15)
    assert corrupt == 0


def test_raw_weights_and_their_average_are_judged_on_the_same_batches():
    weights = {"eval": right_for({0}), "eval_ema": right_for({0, 1, 2})}
    metrics, _ = evaluate(table_step, weights, batches(4), jax.device_put)
    assert metrics["eval/top1"] == pytest.approx(1 / 11, rel=1e-15)
    assert metrics["eval_ema/top1"] == pytest.approx(3 / 11, rel=1e-15)
    assert metrics.keys() == {
        f"{prefix}/{name}" for prefix in weights for name in ("loss", "top1", "top5")
    }


def test_the_statistics_that_belong_to_the_weights_are_used():
    parameters, _ = right_for(set(range(EXAMPLES)))
    weights = {
        "eval": (parameters, {"shift": jnp.zeros(())}),
        "eval_ema": (parameters, {"shift": jnp.full((), jnp.nan)}),
    }
    metrics, _ = evaluate(table_step, weights, batches(4), jax.device_put)
    assert metrics["eval/top1"] == 1 and metrics["eval_ema/top1"] == 0


@pytest.mark.parametrize("batch_size", [4, 11])
def test_what_cannot_be_decoded_is_in_no_metric_and_evaluated_and_corrupt_make_the_total(
    batch_size,
):
    metrics, corrupt = evaluate(
        table_step, {"eval": right_for({0, 1, 2})}, batches(batch_size, (2, 7)), jax.device_put
    )
    assert corrupt == 2
    assert metrics["eval/top1"] == pytest.approx(2 / 9, rel=1e-15)  # 0 and 1 of the other nine


def test_no_batches_are_an_error():
    with pytest.raises(ValueError, match="no example was evaluated"):
        evaluate(table_step, {"eval": right_for({0})}, [], jax.device_put)


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (4, 4), (6, 6), (11, 11), (1000, 11)])
def test_predictions_are_the_first_examples_in_order_and_without_padding(limit, count):
    parameters, statistics = right_for(set(range(EXAMPLES)))
    found = predict(table_step, parameters, statistics, batches(4), jax.device_put, limit)
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], np.arange(count))
    np.testing.assert_array_equal(found.labels, LABELS[:count])
    np.testing.assert_array_equal(found.outputs.argmax(-1), LABELS[:count])
    # A softmax in float32.
    np.testing.assert_allclose(found.outputs.sum(-1), 1, rtol=1e-6)


def test_predictions_leave_out_what_cannot_be_decoded():
    parameters, statistics = right_for(set(range(EXAMPLES)))
    found = predict(table_step, parameters, statistics, batches(4, (1,)), jax.device_put, 4)
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], [0, 2, 3, 4])


def test_no_more_batches_are_read_than_the_limit_needs():
    read = []

    def counted():
        for batch in batches(4):
            read.append(batch)
            yield batch

    predict(table_step, *right_for({0}), counted(), jax.device_put, 5)
    assert len(read) == 2


def test_more_pixels_than_int32_counts_are_counted():
    def step(parameters, statistics, batch):
        of_a_batch = {"loss": jnp.float32(2.0**30), "count": jnp.int32(2**30)}
        return {**of_a_batch, "confusion": jnp.full((2, 2), 2**28, jnp.int32)}, None

    batch = {"image": 0, "label": 0, "mask": 0, "corrupt": np.zeros(1)}
    metrics, _ = evaluate(step, {"eval": ({}, {})}, [batch] * 5, lambda arrays: arrays)
    expected = {"eval/loss": 1.0, "eval/miou": 1 / 3, "eval/pixel_accuracy": 0.5}
    assert metrics == pytest.approx(expected, rel=1e-12)
