"""The form of a computation that suits the platform its program is compiled for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

traced_for = jax.make_user_context(default_value=None)
"""Says which platform is going to run what is traced inside: "cpu", "gpu" or "tpu".

Only that platform's forms are traced then, which takes less time. The program is right on any
platform, and fast on this one. It is a context manager, and part of the key of jax's caches.
"""


def by_platform(*operands: Any, default: Callable[..., Any], **forms: Callable[..., Any]) -> Any:
    """Computes the form of the platform: what `traced_for` said, or what is compiled for.

    Args:
        *operands: what each form takes.
        default: the form of platforms that are not named.
        **forms: those of "cpu" or "tpu".
    """
    platform = traced_for.value
    if platform is None:
        return jax.lax.platform_dependent(*operands, default=default, **forms)
    return forms.get(platform, default)(*operands)
