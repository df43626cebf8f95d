"""Bilinear resizing with PyTorch's two conventions, as two products with constant matrices."""

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
            matrix = jnp.asarray(_weights(x.shape[axis], target, align_corners), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return x
