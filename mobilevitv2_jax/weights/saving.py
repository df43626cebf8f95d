"""To files of weights: `save_pretrained` of the models."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from etils import epath

from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.files import write_whole
from mobilevitv2_jax.models.config import nearest
from mobilevitv2_jax.weights import formats, names, tensors

FORMATS = ("hf",)


def save_pretrained(
    model: Any,
    directory: epath.PathLike,
    format: str = "hf",
    processor: Any = None,
) -> None:
    """Writes a model as another project reads it; arguments are those of the models' method.

    Raises:
        WeightsError: if the format has no place for the model.
    """
    if format not in FORMATS:
        raise WeightsError(
            f"format must be one of {', '.join(FORMATS)}, got {format!r}{nearest(format, FORMATS)}"
        )
    lines = _differences(model.config)
    if getattr(model, "auxiliary_head", None) is not None:
        lines.append(
            "the auxiliary head is left out: Hugging Face has none, and it serves training alone"
        )
    for line in lines:
        warnings.warn(line, stacklevel=3)
    arrays = names.state_dict(model, format, without=("auxiliary_head.",))
    config = model.config.replace(auxiliary_head=False)
    values = {**config.to_dict(), "architectures": [type(model).__name__]}
    path = epath.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    tensors.write_safetensors(path / tensors.WHOLE[0], arrays)
    write_whole(path / "config.json", _text(values))
    if processor is not None:
        images = processor if isinstance(processor, Mapping) else processor.to_dict()
        write_whole(path / formats.PREPROCESSOR, _text(images))


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _differences(config: Any) -> list[str]:
    """Returns the rules of the model that Hugging Face's does not follow, a sentence each."""
    lines = []
    if config.output_stride != 32 and config.dilation_rule != "huggingface":
        lines.append(
            f"dilation_rule={config.dilation_rule!r}: at output_stride {config.output_stride} "
            "Hugging Face does not dilate the local convolutions and computes other outputs"
        )
    if config.odd_size_rule != "drop":
        lines.append(
            f"odd_size_rule={config.odd_size_rule!r}: Hugging Face computes other outputs for "
            "images whose sides are not multiples of 64"
        )
    return lines
