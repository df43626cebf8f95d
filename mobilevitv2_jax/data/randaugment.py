"""The operations of RandAugment (arXiv 1909.13719), with torchvision's strengths and borders.

Each agrees with torchvision's on Pillow images within one grey level, most of them exactly.
(Where a shear takes a pixel from the very edge of the image, at magnitudes 4, 12, 20 and 28 of 31
with a negative sign, rounding decides whether it is black: one pixel in some rows or columns.)
Tables and OpenCV take the place of Pillow where that is faster.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, Int, UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "height width 3"]

_LEVELS = np.arange(256)
_LONGEST_SHIFT = 150 / 331  # of a side; the paper's 150 pixels of its 331
_SMOOTHING = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # ImageFilter.SMOOTH


def _affine(image: Pixels, matrix: tuple[float, ...]) -> Pixels:
    """Takes every pixel from where `matrix` sends it; what lies outside is black.

    Pillow, for OpenCV 4 rounds positions to 1/32 pixel and blends the border with black.
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    moved = picture.transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return np.array(moved)


def _shear_x(image: Pixels, level: float) -> Pixels:
    return _affine(image, (1, 0.3 * level, 0, 0, 1, 0))


def _shear_y(image: Pixels, level: float) -> Pixels:
    return _affine(image, (1, 0, 0, 0.3 * level, 1, 0))


def _shift(image: Pixels, down: int, right: int) -> Pixels:
    """Moves by whole pixels; what comes in is black."""
    height, width = image.shape[:2]
    moved = np.zeros_like(image)
    moved[max(down, 0) : height + down, max(right, 0) : width + right] = image[
        max(-down, 0) : height - down, max(-right, 0) : width - right
    ]
    return moved


def _translate_x(image: Pixels, level: float) -> Pixels:
    return _shift(image, 0, int(_LONGEST_SHIFT * image.shape[1] * level))


def _translate_y(image: Pixels, level: float) -> Pixels:
    return _shift(image, int(_LONGEST_SHIFT * image.shape[0] * level), 0)


def _rotate(image: Pixels, level: float) -> Pixels:
    return np.array(Image.fromarray(image).rotate(30 * level, Image.Resampling.BILINEAR))


def _blend_table(grey: int, factor: float) -> UInt8[np.ndarray, " 256"]:
    """Returns grey + factor (level - grey) for every grey level, as `Image.blend` rounds it."""
    blended = grey + np.float32(factor) * (_LEVELS - grey).astype(np.float32)
    return np.clip(blended, 0, 255).astype(np.uint8)


def _blend(from_image: Pixels, image: Pixels, factor: float) -> Pixels:
    """Returns from_image + factor (image - from_image)."""
    # Pillow cuts fractions off, OpenCV rounds to nearest, and halves to even: hence not 0.5.
    return cv2.addWeighted(image, factor, from_image, 1 - factor, -0.499)


def _brightness(image: Pixels, level: float) -> Pixels:
    return cv2.LUT(image, _blend_table(0, 1 + 0.9 * level))


def _contrast(image: Pixels, level: float) -> Pixels:
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.LUT(image, _blend_table(mean, 1 + 0.9 * level))


def _color(image: Pixels, level: float) -> Pixels:
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return _blend(grey, image, 1 + 0.9 * level)


def _sharpness(image: Pixels, level: float) -> Pixels:
    smooth = cv2.filter2D(image, -1, _SMOOTHING)
    for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):  # Pillow filters none
        smooth[border] = image[border]
    return _blend(smooth, image, 1 + 0.9 * level)


def _posterize(image: Pixels, level: float) -> Pixels:
    dropped = round(4 * level)  # bits
    return cv2.LUT(image, (_LEVELS >> dropped << dropped).astype(np.uint8))


def _solarize(image: Pixels, level: float) -> Pixels:
    threshold = round(255 - 255 * level, 4)  # torchvision's are exact where they are integers
    table = np.where(np.less(_LEVELS, threshold), _LEVELS, 255 - _LEVELS)
    return cv2.LUT(image, table.astype(np.uint8))


def _per_channel(
    image: Pixels,
    table: Callable[[Int[np.ndarray, " 256"]], Float32[np.ndarray, " 256"]],
) -> Pixels:
    """Maps each channel by the table that `table` makes of its histogram."""
    histograms = [cv2.calcHist([image], [c], None, [256], [0, 256]) for c in range(3)]
    tables = [table(histogram.ravel().astype(np.int64)) for histogram in histograms]
    return cv2.LUT(image, np.stack(tables, axis=-1).clip(0, 255).astype(np.uint8)[None])


def _stretch_table(histogram: Int[np.ndarray, " 256"]) -> np.ndarray:
    """Spreads the grey levels in use over 0 to 255: `ImageOps.autocontrast`."""
    used = np.flatnonzero(histogram)
    low, high = used[0], used[-1]
    if low == high:
        return _LEVELS
    scale = 255 / (high - low)
    return np.trunc(_LEVELS * scale - low * scale)


def _equalize_table(histogram: Int[np.ndarray, " 256"]) -> np.ndarray:
    """Makes the grey levels equally frequent: `ImageOps.equalize`."""
    used = histogram[histogram > 0]
    step = (used.sum() - used[-1]) // 255
    if not step:
        return _LEVELS
    below = np.cumsum(histogram) - histogram
    return (step // 2 + below) // step


OPERATIONS: dict[str, tuple[Callable[[Pixels, float], Pixels], bool]] = {
    "Identity": (lambda image, level: image, False),
    "ShearX": (_shear_x, True),
    "ShearY": (_shear_y, True),
    "TranslateX": (_translate_x, True),
    "TranslateY": (_translate_y, True),
    "Rotate": (_rotate, True),
    "Brightness": (_brightness, True),
    "Color": (_color, True),
    "Contrast": (_contrast, True),
    "Sharpness": (_sharpness, True),
    "Posterize": (_posterize, False),
    "Solarize": (_solarize, False),
    "AutoContrast": (lambda image, level: _per_channel(image, _stretch_table), False),
    "Equalize": (lambda image, level: _per_channel(image, _equalize_table), False),
}
"""By torchvision's name: takes an image and a level in [0, 1]; whether the level has a sign."""
