"""What differs between the tasks; loop, step, state and checkpoints are the same for all."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import ml_collections
from flax import nnx
from jaxtyping import Array

from mobilevitv2_jax.data import augment, segmentation
from mobilevitv2_jax.evaluation import pictures
from mobilevitv2_jax.evaluation.step import (
    EvaluationStep,
    make_evaluation_step,
    make_segmentation_step,
)
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.losses import cross_entropy
from mobilevitv2_jax.models.pixels import Pixels
from mobilevitv2_jax.models.tasks import (
    MobileViTV2ForImageClassification,
    MobileViTV2ForSemanticSegmentation,
)
from mobilevitv2_jax.training import mixing


@dataclasses.dataclass(frozen=True)
class Task:
    """A kind of model, with what it is trained and judged by.

    Attributes:
        model: the class of the model.
        loss: takes (model, pixel_values, batch, config, rngs) and returns a scalar.
        make_evaluation_step: takes (graph, the model's configuration, pixels).
        train_transform: takes the config.
        evaluation_transform: takes the config.
        label_type: of one label, as a NumPy type.
        label_is_map: whether an example's label is as large as its image.
        suffix: of the names of the metrics that the loop's own evaluation gives.
        main_metric: the metric that says how good a model is.
        save_picture: draws predictions.
    """

    model: Callable[..., nnx.Module]
    loss: Callable[[Any, Array, dict[str, Array], ml_collections.ConfigDict, nnx.Rngs], Array]
    make_evaluation_step: Callable[[nnx.GraphDef, MobileViTV2Config, Pixels], EvaluationStep]
    train_transform: Callable[[ml_collections.ConfigDict], augment.Train]
    evaluation_transform: Callable[[ml_collections.ConfigDict], Callable]
    label_type: str
    label_is_map: bool
    suffix: str
    main_metric: str
    save_picture: Callable


def _classification_loss(
    model: Any,
    pixel_values: Array,
    batch: dict[str, Array],
    config: ml_collections.ConfigDict,
    rngs: nnx.Rngs,
) -> Array:
    logits = model(pixel_values, rngs=rngs).logits
    smoothing = config.optimizer.label_smoothing
    loss = functools.partial(cross_entropy, logits, label_smoothing=smoothing)
    return mixing.losses(batch, loss).mean()


def _segmentation_loss(
    model: Any,
    pixel_values: Array,
    batch: dict[str, Array],
    config: ml_collections.ConfigDict,
    rngs: nnx.Rngs,
) -> Array:
    return model(pixel_values, batch["label"], rngs=rngs).loss


_TASKS = {
    "classification": Task(
        model=MobileViTV2ForImageClassification,
        loss=_classification_loss,
        make_evaluation_step=lambda graph, model, pixels: make_evaluation_step(graph, pixels),
        train_transform=augment.train_transform,
        evaluation_transform=augment.evaluation_transform,
        label_type="int32",
        label_is_map=False,
        suffix="",
        main_metric="top1",
        save_picture=pictures.save_predictions,
    ),
    "segmentation": Task(
        model=MobileViTV2ForSemanticSegmentation,
        loss=_segmentation_loss,
        make_evaluation_step=lambda graph, model, pixels: make_segmentation_step(
            graph, pixels, model.semantic_loss_ignore_index, model.align_corners
        ),
        train_transform=segmentation.train_transform,
        evaluation_transform=segmentation.evaluation_transform,
        label_type="uint8",
        label_is_map=True,
        # Images squashed to a square: quick, and not the protocol of published figures.
        suffix="_squashed",
        main_metric="miou",
        save_picture=pictures.save_segmentations,
    ),
}


def find_task(config: ml_collections.ConfigDict) -> Task:
    """Returns the task of a validated experiment."""
    return _TASKS[config.task]
