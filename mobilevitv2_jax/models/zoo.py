"""Models by timm's names: `create_model("mobilevitv2_100")`."""

from __future__ import annotations

import fnmatch
from typing import Any

from flax import nnx

from mobilevitv2_jax.models.config import WIDTHS, MobileViTV2Config, nearest
from mobilevitv2_jax.models.heads import HEADS
from mobilevitv2_jax.models.tasks import (
    MobileViTV2ForImageClassification,
    MobileViTV2ForSemanticSegmentation,
)

Model = MobileViTV2ForImageClassification | MobileViTV2ForSemanticSegmentation

# Name -> class, and the fields that the published models of that name were trained with:
# ImageNet-1k, and Pascal VOC at output stride 16.
_MODELS: dict[str, tuple[type[Model], dict[str, Any]]] = {
    **{
        f"mobilevitv2_{round(100 * width):03d}": (
            MobileViTV2ForImageClassification,
            {"width_multiplier": width, "num_labels": 1000},
        )
        for width in WIDTHS
    },
    **{
        f"{head}_mobilevitv2_{round(100 * width):03d}": (
            MobileViTV2ForSemanticSegmentation,
            {
                "width_multiplier": width,
                "num_labels": 21,
                "output_stride": 16,
                "segmentation_head": head,
            },
        )
        for head in HEADS
        for width in WIDTHS
    },
}


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that match a shell-style pattern: classifiers, then segmenters.

    >>> list_models("mobilevitv2_1*")
    ['mobilevitv2_100', 'mobilevitv2_125', 'mobilevitv2_150', 'mobilevitv2_175']
    """
    return fnmatch.filter(_MODELS, pattern)


def create_model(name: str, *, rngs: nnx.Rngs | None = None, **fields: Any) -> Model:
    """Makes a model with fresh weights, in training mode.

    Args:
        name: one of `list_models()`; the number is the width multiplier in percent.
        rngs: source of the initial weights; seed 0 by default.
        **fields: fields of `MobileViTV2Config` that are to differ from the published model's,
            such as `num_labels` (1000 for classifiers and 21 for segmenters by default).

    Raises:
        ValueError: for an unknown name, with the nearest one.
    """
    if name not in _MODELS:
        raise ValueError(
            f"no model {name!r}{nearest(name, _MODELS)}; list_models() names {', '.join(_MODELS)}"
        )
    model, published = _MODELS[name]
    if "id2label" in fields:
        published = {**published, "num_labels": None}
    return model(MobileViTV2Config(**{**published, **fields}), rngs=rngs or nnx.Rngs(0))
