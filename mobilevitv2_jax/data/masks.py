"""Your own images and masks, read where they are.

    DIRECTORY/images/a.jpg, …        any format that is read elsewhere, too
              masks/a.png, …         palette or grey PNG of the same name: the class of each pixel
              classes.txt            a name in each line, from class 0 on
              train.txt, val.txt     names to train on and to hold out; without them a fifth is
                                     held out, always the same

255 in a mask is a pixel without a class.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Mapping

from mobilevitv2_jax.data.folder import EXTENSIONS, HELD_OUT, open_text
from mobilevitv2_jax.data.image import CorruptError
from mobilevitv2_jax.data.maps import FileMaps, list_files
from mobilevitv2_jax.data.segmentation import VOID
from mobilevitv2_jax.errors import DataError

SPLITS = ("train", "val")

_SHOWN = 5  # of the masks that do not fit
_THREADS = 4


def load(split: str, directory: str = "") -> FileMaps:
    """Lists a split, and checks every mask of it (some milliseconds each).

    Args:
        split: "train" or "val".
        directory: the folder that holds images/, masks/ and classes.txt.

    Raises:
        DataError: if files are missing, or masks are damaged, have another size than their image,
            or values that are no class: they are counted, the first named.
    """
    root = pathlib.Path(directory)
    if not directory or not all((root / part).is_dir() for part in ("images", "masks")):
        raise DataError(
            "config.data.directory must be a folder with images/, masks/ and classes.txt, "
            f"got {directory!r}"
        )
    images = _images(root / "images")
    names = _split(root, split, images)
    pairs = ((f"images/{images.get(name, name)}", f"masks/{name}.png") for name in names)
    source = list_files("masks", split, _class_names(root / "classes.txt"), root, pairs)
    _check(source)
    return source


def _images(folder: pathlib.Path) -> dict[str, str]:
    """Returns the files of the images by what their masks are called."""
    images: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            other = images.setdefault(path.stem, path.name)
            if other != path.name:
                raise DataError(
                    f"{folder} has {other} and {path.name}, and one mask cannot be of both: "
                    "rename one of them, and its mask"
                )
    return images


def _class_names(file: pathlib.Path) -> tuple[str, ...]:
    if not file.is_file():
        raise DataError(f"{file} is missing: write the name of a class in each line, from class 0")
    names = tuple(_lines(file))
    if not 2 <= len(names) <= VOID:
        raise DataError(f"{file} must name 2 to {VOID} classes, a line each, got {len(names)}")
    return names


def _lines(file: pathlib.Path) -> list[str]:
    with open_text(file) as stream:
        return list(filter(None, map(str.strip, stream.read().splitlines())))


def _split(root: pathlib.Path, split: str, images: Mapping[str, str]) -> list[str]:
    """Returns the names of a split: those of its list, or its share of all."""
    lists = {part: root / f"{part}.txt" for part in SPLITS}
    present = [part for part, file in lists.items() if file.is_file()]
    if len(present) == len(SPLITS):
        files = set(images.values())
        listed = [pathlib.PurePath(line) for line in _lines(lists[split])]
        # A name may have a dot in it: what follows is an ending only where a file says so.
        return [
            path.name if path.name in images and path.name not in files else path.stem
            for path in listed
        ]
    if present:
        raise DataError(f"{root} has {present[0]}.txt alone: train.txt and val.txt go together")
    ranked = sorted(images, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    count = max(1, round(HELD_OUT * len(ranked)))
    return sorted(ranked[:count] if split == "val" else ranked[count:])


def _check(source: FileMaps) -> None:
    def problem(index: int) -> str:
        try:
            source[index]
        except CorruptError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        problems = list(filter(None, pool.map(problem, range(len(source)))))
    if problems:
        shown = "; ".join(problems[:_SHOWN]) + ("; …" if len(problems) > _SHOWN else "")
        raise DataError(f"{len(problems)} of {len(source)} masks cannot be used: {shown}")
