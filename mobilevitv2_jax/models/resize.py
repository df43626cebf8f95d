"""Bilinear resizing and adaptive pooling as PyTorch's: two products with constant matrices."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mobilevitv2_jax.models import interpolation


def resize_bilinear(
    x: Float[Array, "batch height width channels"], size: tuple[Any, ...], *, align_corners: bool
) -> Float[Array, "batch rows columns channels"]:
    """Resizes to `size` = (rows, columns) without antialiasing.

    Equal to `torch.nn.functional.interpolate(mode="bilinear", align_corners=align_corners)`.
    """
    if not all(isinstance(side, int) for side in (*x.shape[1:3], *size)):
        return resize_in_run(x, size, align_corners=align_corners)
    for axis, target in enumerate(size, start=1):
        if x.shape[axis] != target:
            x = _along(x, axis, interpolation.matrix(x.shape[axis], target, align_corners))
    return x


def resize_in_run(
    x: Float[Array, "batch height width channels"], size: tuple[Any, ...], *, align_corners: bool
) -> Float[Array, "batch rows columns channels"]:
    """Resizes in the same way by matrices that are computed with the rest.

    The sides may be open, as they are in a program that is exported for any size; those that
    turn out to be equal stay as they are.
    """
    for axis, target in enumerate(size, start=1):
        source, points = jnp.float32(x.shape[axis]), jnp.arange(target)
        if align_corners:
            places = points * ((source - 1) / jnp.maximum(jnp.float32(target) - 1, 1))
        else:
            places = (points + 0.5) * (source / jnp.float32(target)) - 0.5
        distance = jnp.clip(places, 0, source - 1)[:, None] - jnp.arange(x.shape[axis])
        matrix = jnp.maximum(1 - jnp.abs(distance), 0).astype(x.dtype)
        product = jnp.tensordot(matrix, x, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
        x = jnp.moveaxis(product, 0, axis)
    return x


@functools.lru_cache(maxsize=256)
def _shares(source: int, bins: int) -> np.ndarray:
    """Returns the [bins, source] matrix of the means over stretches that cover an axis.

    Stretch i reaches from floor(i * source / bins) to ceil((i + 1) * source / bins): where `bins`
    does not divide `source` they overlap, and where it is larger they repeat.
    """
    matrix = np.zeros((bins, source))
    for index in range(bins):
        stretch = np.s_[index * source // bins : -(-(index + 1) * source // bins)]
        matrix[index, stretch] = 1 / (stretch.stop - stretch.start)
    return matrix


def adaptive_average_pool(
    x: Float[Array, "batch height width channels"], bins: int
) -> Float[Array, "batch bins bins channels"]:
    """Returns the means over `bins` x `bins` rectangles that cover each map.

    Equal to `torch.nn.functional.adaptive_avg_pool2d(x, bins)`.
    """
    for axis in (1, 2):
        x = _along(x, axis, _shares(x.shape[axis], bins))
    return x


def _along(x: Array, axis: int, matrix: np.ndarray) -> Array:
    """Applies a matrix [target, source] along one axis."""
    weights = jnp.asarray(matrix, x.dtype)
    # What is in float32 stays so: on TPU the default would round it to bfloat16.
    product = jnp.tensordot(weights, x, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(product, 0, axis)
