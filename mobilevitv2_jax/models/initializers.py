"""Initial values of parameters, without a compilation for each of their shapes.

XLA compiles a random draw, and even a fill, anew for every shape: a third of a second each on
a CPU, a quarter of a minute for a model. Here random numbers are drawn in blocks of one
shape and put together on the host; the values do not depend on where that happens.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mobilevitv2_jax.models.config import MobileViTV2Config

_BLOCK = 1 << 15


@functools.partial(jax.jit, static_argnums=2)
def _draw_block(key: Array, index: int, kind: str) -> Array:
    key = jax.random.fold_in(key, index)
    if kind == "normal":
        return jax.random.normal(key, (_BLOCK,))
    return jax.random.uniform(key, (_BLOCK,), minval=-1.0)


class Blank:
    """Takes the place of `nnx.Rngs` where all values will be replaced: they are zeros then.

    A model is made in a tenth of a second, and thus sooner than traced for its shapes.
    """

    def params(self) -> None:
        """Returns no key."""


def _draw(key: Array | None, shape: tuple[int, ...], kind: str) -> Array | np.ndarray:
    if key is None:
        return np.zeros(shape, np.float32)
    size = math.prod(shape)
    count = -(-size // _BLOCK)
    if isinstance(key, jax.core.Tracer):
        values = jax.vmap(lambda index: _draw_block(key, index, kind))(jnp.arange(count))
        return values.reshape(-1)[:size].reshape(shape)
    values = np.concatenate([_draw_block(key, index, kind) for index in range(count)])
    return values[:size].reshape(shape)


def normal(config: MobileViTV2Config, key: Array | None, shape: tuple[int, ...]) -> Array:
    """Returns normally distributed values with standard deviation `initializer_range`."""
    values = np.float32(config.initializer_range) * _draw(key, shape, "normal")
    return jnp.asarray(values, jnp.dtype(config.param_dtype))


def uniform(
    config: MobileViTV2Config, key: Array | None, shape: tuple[int, ...], limit: float
) -> Array:
    """Returns values uniformly distributed in [-limit, limit)."""
    return jnp.asarray(np.float32(limit) * _draw(key, shape, "uniform"), config.param_dtype)


def constant(value: float, channels: int, dtype: jnp.dtype) -> Array:
    """Returns a vector of one value."""
    return jnp.asarray(np.full(channels, value, dtype))
