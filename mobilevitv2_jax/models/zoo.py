"""Models by timm's names: `create_model("mobilevitv2_100")`."""

from __future__ import annotations

import fnmatch
from typing import Any

from flax import nnx

from mobilevitv2_jax.models.config import WIDTHS, MobileViTV2Config, nearest
from mobilevitv2_jax.models.tasks import MobileViTV2ForImageClassification

_MODELS = {f"mobilevitv2_{round(100 * width):03d}": width for width in WIDTHS}


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that match a shell-style pattern, narrowest first.

    >>> list_models("*_100")
    ['mobilevitv2_100']
    """
    return fnmatch.filter(_MODELS, pattern)


def create_model(
    name: str, *, rngs: nnx.Rngs | None = None, num_labels: int = 1000, **fields: Any
) -> MobileViTV2ForImageClassification:
    """Makes a model with fresh weights.

    Args:
        name: one of `list_models()`; the number is the width multiplier in percent.
        rngs: source of the initial weights; seed 0 by default.
        num_labels: number of classes.
        **fields: any other field of `MobileViTV2Config`.

    Raises:
        ValueError: for an unknown name, with the nearest one.
    """
    if name not in _MODELS:
        raise ValueError(
            f"no model {name!r}{nearest(name, _MODELS)}; list_models() names {', '.join(_MODELS)}"
        )
    if "id2label" not in fields:
        fields["num_labels"] = num_labels
    config = MobileViTV2Config(width_multiplier=_MODELS[name], **fields)
    return MobileViTV2ForImageClassification(config, rngs=rngs or nnx.Rngs(0))
