"""Where in a picture a classifier finds the class that it names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mobilevitv2_jax.models.backbone import pool

_CELLS = 7
"""Cells a side that a map needs to show a place; ImageNet's classifiers have 8 at the end."""


def class_activation(
    model: Any, pixel_values: Float[Array, "batch height width channels"]
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch rows columns"]]:
    """Returns a classifier's logits, and what of a feature map speaks for the best class.

    Grad-CAM (arXiv 1610.02391): the channels of a map are weighed by the mean gradient of the
    best class's logit, summed, and what speaks against it is cut off. The map is the deepest
    one of at least 7 x 7 cells, or the finest where there is none.

    Args:
        model: `MobileViTV2ForImageClassification` in evaluation mode.
        pixel_values: images, channels last.
    """
    backbone = model.backbone
    shapes = jax.eval_shape(backbone.feature_maps, pixel_values)
    fine = [stage for stage, x in enumerate(shapes) if min(x.shape[1:3]) >= _CELLS]
    last = max(fine, default=0)

    def through(stages: Any, x: Array) -> Array:
        for stage in stages:
            for block in stage:
                x = block(x, None)
        return x

    def score(x: Array) -> tuple[Array, Array]:
        logits = pool(through(backbone.stages[last + 1 :], x))
        if model.classifier is not None:
            logits = model.classifier(logits)
        return logits.max(-1).sum(), logits

    features = through(backbone.stages[: last + 1], backbone.stem(pixel_values))
    gradient, logits = jax.grad(score, has_aux=True)(features)
    weights = gradient.mean((1, 2), keepdims=True)
    return logits, jnp.maximum((weights * features).sum(-1), 0)
