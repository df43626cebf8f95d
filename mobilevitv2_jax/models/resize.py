"""Bilinear resizing and adaptive pooling as PyTorch's: two products with constant matrices."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mobilevitv2_jax.models import interpolation


def resize_bilinear(
    x: Float[Array, "batch height width channels"], size: tuple[int, ...], *, align_corners: bool
) -> Float[Array, "batch rows columns channels"]:
    """Resizes to `size` = (rows, columns) without antialiasing.

    Equal to `torch.nn.functional.interpolate(mode="bilinear", align_corners=align_corners)`.
    """
    for axis, target in enumerate(size, start=1):
        if x.shape[axis] != target:
            x = _along(x, axis, interpolation.matrix(x.shape[axis], target, align_corners))
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
    product = jnp.tensordot(jnp.asarray(matrix, x.dtype), x, axes=(1, axis))
    return jnp.moveaxis(product, 0, axis)
