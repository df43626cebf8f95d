"""Single images as NumPy arrays: decode, resize, crop."""

from __future__ import annotations

import io

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from mobilevitv2_jax import images
from mobilevitv2_jax.models import interpolation as between

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_FAST_FILTERS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_JPEG = b"\xff\xd8"


class CorruptError(ValueError):
    """A record or an image that is damaged."""


def decode(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an encoded image (JPEG, PNG, …) to RGB.

    Any EXIF orientation is ignored, as by Pillow and thus in the published results. What is
    transparent is laid on white, as in prediction.

    Raises:
        CorruptError: if `data` is not a whole image.
    """
    try:
        if (picture := _open_transparent(data)) is not None:
            return images.flatten(picture)
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (cv2.error, *images.DAMAGE) as error:  # no bytes, a huge size, …
        raise CorruptError(f"cannot decode {len(data)} bytes as an image: {error}") from error
    if image is None:
        raise CorruptError(f"cannot decode {len(data)} bytes as an image")
    return image


def _open_transparent(data: bytes) -> Image.Image | None:
    """Returns the image, not decoded yet, if OpenCV would show what its opacity hides."""
    if data.startswith(_JPEG):  # which has no opacity, and is most of what is trained on
        return None
    try:
        picture = Image.open(io.BytesIO(data), formats=images.FORMATS)
    except (Image.DecompressionBombError, *images.DAMAGE):  # OpenCV says what it is
        return None
    return picture if images.has_opacity(picture) else None


def to_rgb_jpeg(data: bytes) -> tuple[bytes, str]:
    """Returns an encoded image as an RGB or grey JPEG, and what had to be changed, or "".

    A JPEG that is no CMYK stays as it is, bit by bit.

    Raises:
        CorruptError: if `data` is not a whole image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header, and refuses a huge size
            decode(data)
            found = image.format if image.format != "JPEG" else image.mode
            if found in ("RGB", "L"):
                return data, ""
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=100, subsampling=0)
    except (OSError, Image.DecompressionBombError) as error:
        raise CorruptError(f"cannot decode {len(data)} bytes as an image: {error}") from error
    return buffer.getvalue(), f"{found} made an RGB JPEG"


def resize(
    image: UInt8[np.ndarray, "in_height in_width 3"],
    size: tuple[int, int],
    interpolation: str,
    fast: bool = False,
) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes with an antialiased filter: Pillow's, with which the published results were made.

    Args:
        image: RGB image.
        size: height and width of the result, in pixels.
        interpolation: "bilinear" or "bicubic".
        fast: take OpenCV's filter, which does not antialias: several times faster, and another
            picture, the more so the more the image shrinks (docs/imagenet.md has figures).

    Raises:
        ValueError: for another interpolation.
    """
    if interpolation not in _FILTERS:
        raise ValueError(f"interpolation must be bilinear or bicubic, got {interpolation!r}")
    height, width = size
    if fast:
        return cv2.resize(image, (width, height), interpolation=_FAST_FILTERS[interpolation])
    return np.array(Image.fromarray(image).resize((width, height), _FILTERS[interpolation]))


def resize_short_side(
    image: UInt8[np.ndarray, "in_height in_width 3"], size: int, interpolation: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes the short side to `size` pixels and keeps the aspect.

    The long side is rounded down, as in torchvision and Hugging Face.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    return resize(image, (size * height // short, size * width // short), interpolation)


def resize_aligned(
    image: UInt8[np.ndarray, "in_height in_width 3"], size: tuple[int, int]
) -> Float32[np.ndarray, "height width 3"]:
    """Resizes by linear interpolation, the corners kept in place, without antialiasing.

    Equal to `torch.nn.functional.interpolate(mode="bilinear", align_corners=True)`: fractions of
    grey levels are kept.
    """
    result = image.astype(np.float32)
    for axis, target in enumerate(size):
        if result.shape[axis] != target:
            low, high, share = between.positions(result.shape[axis], target, True)
            weights = share.astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
            result = result.take(low, axis) * (1 - weights) + result.take(high, axis) * weights
    return result


def center_crop(
    image: UInt8[np.ndarray, "in_height in_width 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Cuts the central square out; an image that is too small is padded with zeros."""
    return images.center_crop(image, (size, size))
