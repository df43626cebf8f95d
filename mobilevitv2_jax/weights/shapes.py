"""What the shapes of a file's arrays tell of its model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.models.config import WIDTHS, MobileViTV2Config
from mobilevitv2_jax.weights.names import entry_of

_DEPTHS = MobileViTV2Config().n_attn_blocks

_CANDIDATES = (*WIDTHS, *(hundredths / 100 for hundredths in range(5, 401)))
"""Widths that are tried: the released ones first, which several others round to."""

_STAGES = (
    "backbone.stages.0.0.project",
    "backbone.stages.1.0.project",
    "backbone.stages.2.0.project",
    "backbone.stages.3.0.project",
    "backbone.stages.4.0.project",
)

# Number of classes -> what the original release trained with: Pascal VOC, and ADE20K.
_SEGMENTATIONS: dict[int, dict[str, Any]] = {
    21: {"output_stride": 16, "atrous_rates": (6, 12, 18)},
    150: {"output_stride": 8, "atrous_rates": (12, 24, 36)},
    151: {"output_stride": 8, "atrous_rates": (12, 24, 36)},
}


def width_of(architecture: str) -> float | None:
    """Returns the width of a timm name, such as 1.0 of mobilevitv2_100, or None."""
    match = re.fullmatch(r"mobilevitv2_(\d{3})", str(architecture))
    width = int(match[1]) / 100 if match else None
    return width if width in WIDTHS else None


def infer(arrays: Mapping[str, np.ndarray], source: str) -> tuple[dict[str, Any], str]:
    """Returns fields of the config, and in a sentence what they assume that shapes do not tell.

    Args:
        arrays: of a whole model, by `names.full_keys`.
        source: one of `names.SOURCES`.

    Raises:
        WeightsError: if an array that must be there is missing, or no width gives these shapes.
    """

    def shape(module: str) -> tuple[int, ...]:
        key = entry_of(f"{module}.kernel", source, _DEPTHS).key
        if key not in arrays:
            raise WeightsError(f"{key} is missing, from which the model's shape is inferred")
        return arrays[key].shape

    stem = shape("backbone.stem.convolution")
    stages = tuple(shape(f"{stage}.convolution")[0] for stage in _STAGES)
    attention = tuple(shape(f"backbone.stages.{stage}.1.enter")[0] for stage in (2, 3, 4))
    fields: dict[str, Any] = {
        "width_multiplier": _width(stem[0], stages, attention),
        "num_channels": stem[1],
    }
    if not any(key.startswith(("segmentation_head.", "seg_head.")) for key in arrays):
        bare = not any(key.startswith(("classifier.", "head.")) for key in arrays)
        return fields | {"num_labels": 0 if bare else shape("classifier")[0]}, ""

    classes = shape("segmentation_head.classifier")[0]
    pyramid = any(key.startswith("seg_head.psp_layer.") for key in arrays)
    last = "fuse" if pyramid else "project"
    fields |= {
        "num_labels": classes,
        "image_size": 512,
        "segmentation_head": "pspnet" if pyramid else "deeplabv3",
        "aspp_out_channels": shape(f"segmentation_head.{last}.convolution")[0],
        "auxiliary_head": any(key.startswith("seg_head.aux_head.") for key in arrays),
        "align_corners": source == "cvnets",
    }
    if classes in _SEGMENTATIONS:
        return fields | _SEGMENTATIONS[classes], ""
    said = (
        f"output_stride=16 and atrous_rates=(6, 12, 18) are assumed for its {classes} classes, as "
        "for Pascal VOC's: no shape tells them, so give these arguments where they differ"
    )
    return fields | _SEGMENTATIONS[21], said


def _width(stem: int, stages: tuple[int, ...], attention: tuple[int, ...]) -> float:
    for width in _CANDIDATES:
        config = MobileViTV2Config(width_multiplier=width)
        found = (config.stem_channels, config.stage_channels, config.attention_channels)
        if found == (stem, stages, attention):
            return width
    raise WeightsError(
        f"no width gives a stem of {stem}, stages of {stages} and attention of {attention} channels"
    )
