"""Linear interpolation with PyTorch's two conventions: where to read, and what to weigh it by.

NumPy alone: processing of images needs it, too, and loads no jax.
"""

from __future__ import annotations

import functools

import numpy as np


def positions(
    source: int, target: int, align_corners: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what the `target` points of an axis lie between.

    Args:
        source: length of the axis.
        target: its new length.
        align_corners: whether the first and last points stay in place; the outer edges of the
            first and last pixel do otherwise.

    Returns:
        For each point the index before it, the one behind it, and the share of the latter.
    """
    places = np.arange(target, dtype=np.float64)
    if align_corners:
        places *= (source - 1) / (target - 1) if target > 1 else 0.0
    else:
        places = np.maximum((places + 0.5) * source / target - 0.5, 0.0)
    low = np.minimum(places.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), places - low


@functools.lru_cache(maxsize=256)
def matrix(source: int, target: int, align_corners: bool) -> np.ndarray:
    """Returns the [target, source] matrix that interpolates along one axis."""
    low, high, share = positions(source, target, align_corners)
    weights = np.zeros((target, source))
    np.add.at(weights, (np.arange(target), low), 1 - share)
    np.add.at(weights, (np.arange(target), high), share)
    return weights


def resize_rows(x: np.ndarray, size: tuple[int, int], top: int, bottom: int) -> np.ndarray:
    """Returns the rows `top` to `bottom` of a map [rows, columns, channels] resized to `size`.

    Equal to `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`.
    """
    for axis, (target, chosen) in enumerate(zip(size, (np.s_[top:bottom], np.s_[:]), strict=True)):
        low, high, share = (points[chosen] for points in positions(x.shape[axis], target, False))
        share = share.astype(x.dtype).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return x
