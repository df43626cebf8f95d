"""Metrics as sums over examples, so that batches, padding and devices do not change them."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mobilevitv2_jax.models.losses import cross_entropy

Sums = dict[str, Array]


def classification_sums(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    mask: Float[Array, " batch"],
) -> Sums:
    """Returns sums over the examples whose mask is 1: loss, correct in top 1 and 5, count.

    An example is correct in the top k if fewer than k classes score at least as high as the
    true one, itself left out: ties count against it, so that equal logits earn nothing.
    """
    logits = logits.astype(jnp.float32)
    true = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    rank = (logits >= true).sum(-1) - 1
    losses = cross_entropy(logits, labels)
    # NaN, from the model or for a label outside the classes, compares false with everything,
    # which would count as the first rank.
    ranked = mask * ~jnp.isnan(losses)
    return {
        "loss": jnp.where(mask > 0, losses, 0).sum(),
        "top1": (ranked * (rank < 1)).sum(),
        "top5": (ranked * (rank < 5)).sum(),
        "count": mask.sum(),
    }


def segmentation_sums(
    logits: Float[Array, "batch height width classes"],
    labels: Int[Array, "batch height width"],
    mask: Float[Array, " batch"],
    ignored: int,
) -> Sums:
    """Returns sums over the pixels that count, in the images whose mask is 1.

    Args:
        logits: scores at the size of the labels.
        labels: true classes; `ignored`, and anything that is no class, does not count.
        mask: 0 leaves an image out.
        ignored: the label of pixels without a class.

    Returns:
        "confusion" [true class, predicted class], "loss" and "count".
    """
    classes = logits.shape[-1]
    counted = have_class(labels, classes, ignored) & (mask > 0)[:, None, None]
    safe = jnp.where(counted, labels.astype(jnp.int32), 0)
    return {
        "confusion": confusion_matrix(safe, logits.argmax(-1), counted, classes),
        "loss": jnp.where(counted, cross_entropy(logits, safe), 0).sum(),
        "count": counted.sum(),
    }


def have_class(labels: Int[Array, "..."], classes: int, ignored: int) -> Bool[Array, "..."]:
    """Returns where a label is a class, and not the ignored one."""
    labels = labels.astype(jnp.int32)
    return (labels != ignored) & (labels >= 0) & (labels < classes)


def confusion_matrix(
    labels: Int[Array, "..."],
    predicted: Int[Array, "..."],
    counted: Bool[Array, "..."],
    classes: int,
) -> Int[Array, "classes classes"]:
    """Returns how often each class [rows] was taken for each [columns], where it counts."""
    safe = jnp.where(counted, labels.astype(jnp.int32), 0)
    matrix = jnp.zeros((classes, classes), jnp.int32)
    return matrix.at[safe, predicted.astype(jnp.int32)].add(counted.astype(jnp.int32))


def means(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the metrics that the sums of a set make, as Python numbers.

    Sums are divided by "count"; a confusion matrix becomes "miou" and "pixel_accuracy".

    Raises:
        ValueError: if no example was counted.
    """
    values = dict(sums)
    count, confusion = float(values.pop("count")), values.pop("confusion", None)
    if not count:
        raise ValueError("no example was evaluated: the set is empty, or none could be decoded")
    metrics = {name: float(value) / count for name, value in values.items()}
    return metrics if confusion is None else {**segmentation_metrics(confusion), **metrics}


def intersection_over_union(
    confusion: Int[np.ndarray, "classes classes"],
) -> Float[np.ndarray, " classes"]:
    """Returns the IoU of each class; NaN for one that neither truth nor prediction shows."""
    intersection = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def segmentation_metrics(confusion: Int[np.ndarray, "classes classes"]) -> dict[str, float]:
    """Returns "miou", the mean over the classes that occur, and "pixel_accuracy"."""
    return {
        "miou": float(np.nanmean(intersection_over_union(confusion))),
        "pixel_accuracy": float(np.diag(confusion).sum() / confusion.sum()),
    }
