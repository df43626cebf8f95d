"""Evaluation over a whole set, of raw weights and of their average at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mobilevitv2_jax.evaluation.metrics import Sums, means
from mobilevitv2_jax.evaluation.step import EvaluationStep
from mobilevitv2_jax.models.functional import Arrays

Weights = Mapping[str, tuple[Arrays, Arrays]]
"""Parameters and statistics by the prefix of their metrics: "eval" and "eval_ema"."""

Batch = dict[str, np.ndarray]


def evaluate(
    step: EvaluationStep,
    weights: Weights,
    batches: Iterable[Batch],
    put: Callable[[Batch], dict[str, jax.Array]],
) -> tuple[dict[str, float], int]:
    """Evaluates every example once.

    Args:
        step: the jitted evaluation step.
        weights: what to evaluate; all of it sees the same batches.
        batches: host batches, padded where "mask" is 0.
        put: makes a batch global.

    Returns:
        Metrics such as "eval/top1" and "eval_ema/loss" (fractions in [0, 1]; nats), and the
        number of records that could not be decoded and are in no metric.

    Raises:
        ValueError: if no example could be evaluated.
    """
    totals: dict[str, dict[str, Any]] = {prefix: {} for prefix in weights}
    pending: dict[str, Sums] = {}
    corrupt = 0
    for batch in batches:
        corrupt += int(batch["corrupt"].sum())
        arrays = put({name: batch[name] for name in ("image", "label", "mask")})
        sums = {prefix: step(*arguments, arrays)[0] for prefix, arguments in weights.items()}
        # Fetched while the next batch is computed, so that the device does not wait.
        _add(totals, pending)
        pending = sums
    _add(totals, pending)
    if not pending:
        raise ValueError("no example was evaluated: there were no batches")
    metrics = {
        f"{prefix}/{name}": value
        for prefix, sums in totals.items()
        for name, value in means(sums).items()
    }
    return metrics, int(multihost_utils.process_allgather(np.int32(corrupt)).sum())


def _add(totals: dict[str, dict[str, Any]], sums: Mapping[str, Sums]) -> None:
    """Adds sums of a batch on the host: a set may have more pixels than int32 counts."""
    for prefix, values in jax.device_get(dict(sums)).items():
        for name, value in values.items():
            wide = value.astype(np.int64 if value.dtype.kind == "i" else np.float64)
            totals[prefix][name] = totals[prefix].get(name, 0) + wide


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Examples of a set with what the model says of them.

    Attributes:
        images: [examples, height, width, 3] in uint8, as the model saw them.
        labels: true classes, of images or of pixels.
        outputs: what the evaluation step returns besides sums: the probabilities [examples,
            classes] of a classifier, the classes [examples, height, width] of a segmentation.
    """

    images: np.ndarray
    labels: np.ndarray
    outputs: np.ndarray


def predict(
    step: EvaluationStep,
    parameters: Arrays,
    statistics: Arrays,
    batches: Iterable[Batch],
    put: Callable[[Batch], dict[str, jax.Array]],
    limit: int,
) -> Predictions:
    """Returns the first `limit` examples of the batches with the model's outputs."""
    parts: list[tuple[Any, ...]] = []
    for batch in batches:
        arrays = put({name: batch[name] for name in ("image", "label", "mask")})
        _, outputs = step(parameters, statistics, arrays)
        # Of several processes each has loaded some of the rows: all of them are fetched again,
        # in the order of the outputs, so that every process counts the same and stops together.
        rows = (arrays["mask"], arrays["image"], arrays["label"], outputs)
        mask, *part = multihost_utils.process_allgather(rows, tiled=True)
        parts.append(tuple(array[mask > 0] for array in part))
        if sum(len(labels) for _, labels, _ in parts) >= limit:
            break
    return Predictions(*(np.concatenate(column)[:limit] for column in zip(*parts, strict=True)))
