"""Images with a map of classes each, in files side by side.

A map is a PNG with a palette or with grey levels, or a .mat file of the Semantic Boundaries
Dataset (SBD): one number a pixel, 255 for a pixel without a class. Reading it never goes through
colours, so every value arrives as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mobilevitv2_jax.data.image import CorruptError
from mobilevitv2_jax.data.segmentation import VOID
from mobilevitv2_jax.errors import DataError
from mobilevitv2_jax.images import grey_step
from mobilevitv2_jax.models.config import nearest

Map = UInt8[np.ndarray, "height width"]

_SHOWN = 5  # of what is missing or wrong


def decode_map(data: bytes) -> Map:
    """Returns the classes of a PNG or of SBD's .mat file, as they are stored.

    Raises:
        CorruptError: if it is neither, is cut off, or holds colours.
    """
    read = _read_matlab if data.startswith(b"MATLAB") else _read_picture
    try:
        label, mode = read(data)
    except Exception as error:  # what is damaged fails in as many ways as the readers have
        raise CorruptError(f"cannot decode {len(data)} bytes as a map: {error}") from error
    if mode not in ("P", "L"):
        raise CorruptError(f"a map of classes must have a palette or grey levels, got {mode}")
    return label


def _read_picture(data: bytes) -> tuple[Map, str]:
    with Image.open(io.BytesIO(data)) as picture:
        step = grey_step(picture)
        return np.array(picture) // np.uint8(step), picture.mode


def _read_matlab(data: bytes) -> tuple[Map, str]:
    from scipy.io import loadmat  # half a second, which only SBD needs

    classes = loadmat(io.BytesIO(data), variable_names=["GTcls"])["GTcls"]["Segmentation"]
    return np.ascontiguousarray(classes[0, 0], np.uint8), "L"


def check_map(label: Map, image: bytes, classes: int) -> None:
    """Checks a map against its image.

    Raises:
        CorruptError: if the sizes differ, or a value is neither a class nor 255.
    """
    with Image.open(io.BytesIO(image)) as picture:
        width, height = picture.size
    if label.shape != (height, width):
        rows, columns = label.shape
        raise CorruptError(f"the map has {columns} x {rows} pixels, the image {width} x {height}")
    counts = np.bincount(label.ravel(), minlength=VOID + 1)
    unknown = np.flatnonzero(counts[classes:VOID]) + classes
    if len(unknown):
        values = ", ".join(map(str, unknown[:_SHOWN]))
        raise CorruptError(
            f"the map has the value {values}, and there are the classes 0 to {classes - 1} "
            f"and {VOID}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class FileMaps:
    """A `Source` of image files and files of their maps.

    Attributes:
        name: name of the data set.
        split: part of the data set.
        class_names: name of each class, by the value in the maps.
        root: where paths start.
        images: paths of the images, as bytes: an array is small, and quick to send to a worker.
        maps: paths of the maps, in the same order.
        shift: subtracted from the maps' values, modulo 256: 1 makes 0 the void of ADE20K.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    root: str
    images: np.ndarray
    maps: np.ndarray
    shift: int = 0

    @property
    def fingerprint(self) -> str:
        """Name, split, length, and a checksum of the paths."""
        content = hashlib.sha256(self.images.tobytes() + self.maps.tobytes()).hexdigest()
        return f"{self.name}/{self.split}/{len(self)}-{content[:8]}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the encoded image, and the map.

        Raises:
            CorruptError: if the map is damaged or does not fit the image: both are named.
        """
        image, map_file = self._file(self.images[index]), self._file(self.maps[index])
        try:
            data = image.read_bytes()
            label = decode_map(map_file.read_bytes()) - np.uint8(self.shift)
            check_map(label, data, len(self.class_names))
        except (CorruptError, OSError) as error:
            raise CorruptError(f"{map_file} (of {image.name}): {error}") from error
        return {"image": data, "label": label, "name": image.name}

    def file_name(self, index: int) -> str:
        """Returns the name of an image's file."""
        return pathlib.Path(os.fsdecode(self.images[index])).name

    def _file(self, path: bytes) -> pathlib.Path:
        return pathlib.Path(self.root, os.fsdecode(path))


def list_files(
    name: str,
    split: str,
    class_names: Sequence[str],
    root: pathlib.Path,
    pairs: Iterable[tuple[str, str]],
    shift: int = 0,
) -> FileMaps:
    """Returns the source of pairs of paths (image, map), all of which exist.

    Raises:
        DataError: if there are none, or files are missing: they are counted, the first named.
    """
    images, maps = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())
    if not images:
        raise DataError(f"split {split} of {name} in {root} lists no images")
    there = {folder: _names(root / folder) for folder in map(os.path.dirname, {*images, *maps})}
    missing = [
        path
        for path in (*images, *maps)
        if os.path.basename(path) not in there[os.path.dirname(path)]
    ]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise DataError(
            f"{root} lacks {len(missing)} of the {2 * len(images)} files of split {split}: {shown}"
        )
    image_paths, map_paths = (
        np.array([os.fsencode(path) for path in paths]) for paths in (images, maps)
    )
    folder = str(root.absolute())
    return FileMaps(name, split, tuple(class_names), folder, image_paths, map_paths, shift)


def find_root(directory: str, places: Iterable[str], part: str) -> pathlib.Path | None:
    """Returns the first of the places in a directory that has a folder of that name."""
    roots = [pathlib.Path(directory, place) for place in places] if directory else []
    return next((root for root in roots if (root / part).is_dir()), None)


def check_split(name: str, split: str, allowed: Iterable[str]) -> None:
    """Checks the name of a split.

    Raises:
        DataError: if it is not one of those allowed, which are named.
    """
    allowed = list(allowed)
    if split not in allowed:
        raise DataError(
            f"split of {name} must be one of {', '.join(allowed)}, got {split!r}"
            f"{nearest(split, allowed)}"
        )


def _names(folder: pathlib.Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
