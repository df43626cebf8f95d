"""Bilinear resizing and adaptive pooling as PyTorch's: two products with constant matrices."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@functools.lru_cache(maxsize=256)
def _weights(source: int, target: int, align_corners: bool) -> np.ndarray:
    """Returns the [target, source] matrix of linear interpolation along one axis."""
    positions = np.arange(target, dtype=np.float64)
    if align_corners:
        positions *= (source - 1) / (target - 1) if target > 1 else 0.0
    else:
        positions = np.maximum((positions + 0.5) * source / target - 0.5, 0.0)
    low = np.minimum(positions.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    share = positions - low
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1 - share)
    np.add.at(matrix, (np.arange(target), high), share)
    return matrix


def resize_bilinear(
    x: Float[Array, "batch height width channels"], size: tuple[int, ...], *, align_corners: bool
) -> Float[Array, "batch rows columns channels"]:
    """Resizes to `size` = (rows, columns) without antialiasing.

    Equal to `torch.nn.functional.interpolate(mode="bilinear", align_corners=align_corners)`.
    """
    for axis, target in enumerate(size, start=1):
        if x.shape[axis] != target:
            x = _along(x, axis, _weights(x.shape[axis], target, align_corners))
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
