"""Pictures of every kind as arrays, and what is done with them; NumPy and Pillow only.

A picture comes in as a person sees it: turned as its EXIF data say, what is transparent on white,
16 bits scaled to 8. Sizes and numbers are those of Hugging Face's Pillow backend, to the bit.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, ImageOps

from mobilevitv2_jax.errors import ImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read; Pillow would give others to programs of the machine (EPS to Ghostscript)."""

SUFFIXES = (".bmp", ".gif", ".jpg", ".jpeg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""How files of these formats end."""

MOST_PIXELS = 89_478_485
"""Of a file: 256 MB in RGB. Pillow warns of more: a file of a few kB can claim any size."""

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)
"""What Pillow raises for a file that is damaged, or none of its own."""

LAYOUTS = ("channels_last", "channels_first")

_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with opacity
_TRANSPARENT = ("RGBA", "LA", "PA")
_STRETCHED = {"L;2": 85, "L;4": 17}  # 255 over the highest value, by Pillow's raw mode
_ORIENTATION = 0x0112  # the EXIF tag


def open_image(path: epath.PathLike) -> Image.Image:
    """Reads a file of one of `FORMATS`.

    Raises:
        ImageError: if it does not exist, is none, has more than `MOST_PIXELS`, or is damaged.
    """
    return _read(path)[0]


def grey_step(image: Image.Image) -> int:
    """Returns what lies between two grey levels of Pillow's, which stretches 2 and 4 bits to 8.

    A map of classes is to be divided by it. It is 1 once Pillow has read the pixels.
    """
    for tile in getattr(image, "tile", []):
        raw_mode = tile.args if isinstance(tile.args, str) else (tile.args or [None])[0]
        return _STRETCHED.get(raw_mode, 1)
    return 1


def _read(path: epath.PathLike) -> tuple[Image.Image, int]:
    """Returns a picture, and its `grey_step` from before it was read."""
    file = epath.Path(path)
    if not file.is_file():
        raise ImageError(f"{path} does not exist or is not a file")
    try:
        with file.open("rb") as stream:
            image = Image.open(stream, formats=FORMATS)
            pixels = image.width * image.height
            if pixels > MOST_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            step = grey_step(image)
            image.load()
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path} is too large ({error}): at most {MOST_PIXELS:,} pixels are read; shrink it"
        ) from None
    except Image.UnidentifiedImageError:
        raise ImageError(
            f"{path} is not an image of one of the formats {', '.join(FORMATS)}"
        ) from None
    except DAMAGE as error:
        raise ImageError(f"{path} is damaged, or cut short ({error})") from error
    return image, step


def to_array(image: Any, layout: str | None = None) -> np.ndarray:
    """Returns a picture as [height, width, 3].

    Args:
        image: a path, an image of Pillow's, or an array [height, width] or with 1, 3 or 4
            channels: bytes, 16 bits unsigned, other whole numbers of 0 to 255, or floating point
            numbers in [0, 1].
        layout: of the array, one of `LAYOUTS`; by default channels last where that can be.

    Returns:
        uint8; floating point numbers in [0, 1] as they are.

    Raises:
        ImageError: if a file cannot be read, or an array is no picture.
    """
    if isinstance(image, str) and "://" in image and not os.path.exists(image):
        raise ImageError(f"{image} is an address: download it, and give the file")
    if isinstance(image, str | os.PathLike):
        image = open_image(image)
    if isinstance(image, Image.Image):
        return flatten(_upright(image))
    array = _channels_last(np.asarray(image), layout)
    array = _eight_bits(array)
    if array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    return _on_white(array) if array.shape[-1] == 4 else array


def to_map(image: Any) -> np.ndarray:
    """Returns a map of classes as uint8 [height, width]; of a palette's image, its indices.

    Args:
        image: a path, an image of Pillow's, or an array [height, width] with or without an axis
            of one channel.

    Raises:
        ImageError: if it has colours, or a class that is not a whole number of 0 to 255.
    """
    step = 1
    if isinstance(image, str | os.PathLike):
        image, step = _read(image)
    elif isinstance(image, Image.Image):
        step = grey_step(image)
    array = np.asarray(image)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array.reshape([side for side in array.shape if side != 1] or [1])
    if array.ndim != 2:
        raise ImageError(
            f"a segmentation map must be [height, width], a class a pixel, got {list(array.shape)}"
        )
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == bool):
        raise ImageError(f"a segmentation map must hold whole numbers, got {array.dtype}")
    if array.size and not 0 <= array.min() <= array.max() <= 255:
        raise ImageError(
            f"a segmentation map must hold classes of 0 to 255, got {array.min()} to {array.max()}"
        )
    return array.astype(np.uint8) // np.uint8(step)


def flatten(image: Image.Image) -> np.ndarray:
    """Returns a picture of Pillow's as [height, width, 3], on white and not turned."""
    if image.mode.startswith(("I", "F")):
        array = np.asarray(image)
        if image.mode == "I":  # of 32 bits, and used for 16
            array = np.clip(array, 0, 65535).astype(np.uint16)
        return np.repeat(_eight_bits(array[..., None]), 3, axis=-1)
    if has_opacity(image):
        return _on_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def has_opacity(image: Image.Image) -> bool:
    """Whether some of a picture of Pillow's may be transparent."""
    return image.mode in _TRANSPARENT or "transparency" in image.info


def _upright(image: Image.Image) -> Image.Image:
    """Turns a picture as its EXIF data say; data that cannot be read say nothing."""
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return image


def _on_white(array: np.ndarray) -> np.ndarray:
    """Lays a picture with opacity on white; where it is opaque, colours stay as they are."""
    if array.dtype != np.uint8:
        opacity = array[..., 3:]
        return array[..., :3] * opacity + (1 - opacity)
    picture = Image.fromarray(array)
    white = Image.new("RGBA", picture.size, "white")
    return np.array(Image.alpha_composite(white, picture).convert("RGB"))


def _channels_last(array: np.ndarray, layout: str | None) -> np.ndarray:
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"input_data_format must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if array.ndim == 2:
        return array[..., None]
    if array.ndim == 3:
        if layout != "channels_first" and array.shape[-1] in _CHANNELS:
            return array
        if layout != "channels_last" and array.shape[0] in _CHANNELS:
            return np.moveaxis(array, 0, -1)
    raise ImageError(
        "an image must be [height, width], or [height, width, channels] with 1, 3 or 4 channels, "
        f"got {list(array.shape)}"
    )


def _eight_bits(array: np.ndarray) -> np.ndarray:
    """Returns bytes, or floating point numbers in [0, 1]."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.number) or not array.size:
        raise ImageError(f"an image must hold numbers, got {array.size} of {array.dtype}")
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating) and 0 <= low <= high <= 1:
        return array
    if 0 <= low <= high <= 255 and np.array_equal(array, np.floor(array)):
        return array.astype(np.uint8)
    raise ImageError(
        "an image must hold whole numbers of 0 to 255, or floating point numbers in [0, 1], "
        f"got {array.dtype} from {low} to {high}"
    )


# ---- Steps -----------------------------------------------------------------------------------


def target_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """Returns the height and width that an image is resized to.

    Source: `get_resize_output_image_size`, and with a longest edge `get_size_with_aspect_ratio`,
    of transformers `image_transforms.py`.

    Args:
        height: of the image.
        width: of the image.
        size: {"height", "width"}, or {"shortest_edge"} with or without {"longest_edge"}.
    """
    if "height" in size:
        return size["height"], size["width"]
    short, long = min(height, width), max(height, width)
    edge: float = size["shortest_edge"]
    most = size.get("longest_edge")
    if most is not None and long / short * edge > most:
        edge = most * float(short) / long
    if round(edge) == short:
        return height, width
    new_short, new_long = round(edge), int(edge * long / short)
    return (new_long, new_short) if width < height else (new_short, new_long)


def resize(array: np.ndarray, size: Mapping[str, int], resample: int) -> np.ndarray:
    """Resizes bytes [height, width, …], or numbers in [0, 1] by way of bytes.

    Args:
        array: the image.
        size: as in `target_size`.
        resample: Pillow's number of the filter.
    """
    if array.dtype != np.uint8:
        return rescale(resize(rescale(array, 255).astype(np.uint8), size, resample), 1 / 255)
    height, width = target_size(array.shape[0], array.shape[1], size)
    picture = Image.fromarray(array).resize((width, height), Image.Resampling(resample))
    return np.asarray(picture)


def rescale(array: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies in float64, and returns float32."""
    return (array.astype(np.float64) * factor).astype(np.float32)


def center_crop(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cuts the centre out of [height, width, …]; what is too small is filled up with zeros.

    The rectangle begins at (side - size) // 2.
    """
    starts = [(side - wanted) // 2 for side, wanted in zip(array.shape, size, strict=False)]
    if min(starts) < 0:
        fill = [(max(-start, 0),) * 2 for start in starts]
        array = np.pad(array, [*fill, *[(0, 0)] * (array.ndim - 2)])
    top, left = (max(start, 0) for start in starts)
    return array[top : top + size[0], left : left + size[1]]
