"""Every loss of the project. All are computed in float32 or better."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mobilevitv2_jax.models.layers import statistics_dtype
from mobilevitv2_jax.models.resize import resize_bilinear

IGNORED = -100
"""Class label that the cross entropy of the image classifier passes over, as PyTorch's does."""


def cross_entropy(
    logits: Float[Array, "... classes"], labels: Int[Array, "..."], *, label_smoothing: float = 0.0
) -> Float[Array, "..."]:
    """Returns the cross entropy of each example with its class.

    `label_smoothing` spreads that share of the target evenly over all classes, the true one
    included, as PyTorch does. Labels outside the classes give NaN, so that a wrong label
    cannot pass unnoticed.
    """
    logits = logits.astype(statistics_dtype(logits))
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    target = jnp.take_along_axis(
        log_probabilities, labels[..., None], axis=-1, mode="fill", fill_value=jnp.nan
    )[..., 0]
    # take_along_axis counts negative labels from the end.
    target = jnp.where(labels < 0, jnp.nan, target)
    return -(1 - label_smoothing) * target - label_smoothing * log_probabilities.mean(-1)


def mean_cross_entropy(
    logits: Float[Array, "... classes"], labels: Int[Array, "..."], *, ignored: int = IGNORED
) -> Float[Array, ""]:
    """Returns the mean cross entropy over the labels that are not `ignored`; 0 if all are."""
    counted = labels != ignored
    losses = cross_entropy(logits, jnp.where(counted, labels, 0))
    return jnp.where(counted, losses, 0).sum() / jnp.maximum(counted.sum(), 1)


def binary_cross_entropy(
    logits: Float[Array, "..."], labels: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns the binary cross entropy of each logit with its target in [0, 1]."""
    logits = logits.astype(statistics_dtype(logits))
    return jax.nn.softplus(logits) - labels.astype(logits.dtype) * logits


def infer_problem_type(num_labels: int, labels: Array) -> str:
    """Returns the problem type that Hugging Face infers, from the number and type of labels.

    Integer labels of every width name classes; Hugging Face takes int16 and uint8 for
    multi-label targets and then fails.
    """
    if num_labels == 1:
        return "regression"
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return "single_label_classification"
    return "multi_label_classification"


def classification_loss(
    logits: Float[Array, "batch num_labels"], labels: Array, problem_type: str | None
) -> Float[Array, ""]:
    """Returns the mean loss of an image classifier.

    Args:
        logits: the classifier's scores.
        labels: class indices [batch] (-100 is ignored) for a single label; targets
            [batch, num_labels] in [0, 1] for multiple labels; values [batch] or
            [batch, num_labels] for regression.
        problem_type: one of `PROBLEM_TYPES`; None infers it from the labels.

    Raises:
        ValueError: if the labels' shape does not fit the problem type.
    """
    problem_type = problem_type or infer_problem_type(logits.shape[-1], labels)
    if problem_type == "single_label_classification":
        labels = labels.astype(jnp.int32)
        _require_shape(labels, logits.shape[:1], problem_type)
        return mean_cross_entropy(logits, labels)
    if problem_type == "regression" and logits.shape[-1] == 1:
        logits, labels = logits[..., 0], labels.reshape(labels.shape[:1])
    _require_shape(labels, logits.shape, problem_type)
    if problem_type == "regression":
        return jnp.square(logits.astype(statistics_dtype(logits)) - labels).mean()
    return binary_cross_entropy(logits, labels).mean()


def segmentation_loss(
    logits: Float[Array, "batch height width num_labels"],
    labels: Int[Array, "batch rows columns"],
    *,
    ignored: int,
    align_corners: bool,
) -> Float[Array, ""]:
    """Returns the mean cross entropy over the pixels whose label is not `ignored`; 0 if all are.

    The logits are upsampled to the size of the labels.

    Raises:
        ValueError: if there is a single class, or the labels are no batch of maps.
    """
    if logits.shape[-1] == 1:
        raise ValueError(
            "num_labels must be at least 2 for segmentation, got 1: "
            "background and one class are num_labels=2"
        )
    if labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels for segmentation must be [{logits.shape[0]}, height, width], "
            f"got {list(labels.shape)}"
        )
    logits = logits.astype(statistics_dtype(logits))
    logits = resize_bilinear(logits, labels.shape[1:], align_corners=align_corners)
    return mean_cross_entropy(logits, labels.astype(jnp.int32), ignored=ignored)


def _require_shape(labels: Array, shape: tuple[int, ...], problem_type: str) -> None:
    if labels.shape != shape:
        raise ValueError(
            f"labels for {problem_type} must have shape {list(shape)}, got {list(labels.shape)}"
        )
