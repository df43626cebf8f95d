"""MobileViTV2 in JAX: models, training and weights (arXiv 2206.02680).

Names are resolved when first used: importing the package loads neither a backend nor any of
the heavy libraries behind it.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "MobileViTV2Config": "mobilevitv2_jax.models.config",
    "MobileViTV2Model": "mobilevitv2_jax.models.backbone",
    "MobileViTV2ForImageClassification": "mobilevitv2_jax.models.tasks",
    "MobileViTV2ForSemanticSegmentation": "mobilevitv2_jax.models.tasks",
    "MobileViTImageProcessor": "mobilevitv2_jax.processing",
    "create_model": "mobilevitv2_jax.models.zoo",
    "list_models": "mobilevitv2_jax.models.zoo",
}
_MODULES = ("config", "data", "evaluation", "models", "training", "weights")

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
