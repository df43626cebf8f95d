"""One evaluation step: a pure function of parameters, statistics and batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from mobilevitv2_jax.evaluation.metrics import Sums, classification_sums, segmentation_sums
from mobilevitv2_jax.models.functional import Arrays, merge
from mobilevitv2_jax.models.layers import statistics_dtype
from mobilevitv2_jax.models.pixels import Pixels
from mobilevitv2_jax.models.resize import resize_bilinear

EvaluationStep = Callable[[Arrays, Arrays, dict[str, Array]], tuple[Sums, Array]]


def make_evaluation_step(graph: nnx.GraphDef, pixels: Pixels) -> EvaluationStep:
    """Returns the evaluation step, to be jitted.

    The step takes (parameters, statistics, batch) with "image" in uint8, "label" and "mask",
    and returns the sums of `classification_sums` and the probabilities [batch, classes].
    """

    def evaluation_step(
        parameters: Arrays, statistics: Arrays, batch: dict[str, Array]
    ) -> tuple[Sums, Array]:
        model = merge(graph, parameters, statistics)
        logits = model(pixels(batch["image"])).logits
        sums = classification_sums(logits, batch["label"], batch["mask"])
        return sums, jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

    return evaluation_step


def make_segmentation_step(
    graph: nnx.GraphDef, pixels: Pixels, ignored: int, align_corners: bool
) -> EvaluationStep:
    """Returns the evaluation step of a segmentation model, to be jitted.

    The step takes (parameters, statistics, batch) with "image" in uint8, "label" [batch, height,
    width] and "mask"; it upsamples the logits to the size of the labels and returns the sums of
    `segmentation_sums` and the predicted classes [batch, height, width] in uint8.
    """

    def segmentation_step(
        parameters: Arrays, statistics: Arrays, batch: dict[str, Array]
    ) -> tuple[Sums, Array]:
        model = merge(graph, parameters, statistics)
        logits = model(pixels(batch["image"])).logits
        logits = resize_bilinear(
            logits.astype(statistics_dtype(logits)),
            batch["label"].shape[1:3],
            align_corners=align_corners,
        )
        sums = segmentation_sums(logits, batch["label"], batch["mask"], ignored)
        return sums, logits.argmax(-1).astype(jnp.uint8)

    return segmentation_step
