"""ADE20K scene parsing: the 150 classes of ADEChallengeData2016, or a prepared set.

    ADEChallengeData2016/images/training/ADE_train_00000001.jpg         20,210; validation 2,000
                         annotations/training/ADE_train_00000001.png    grey PNG, 0 to 150
                         objectInfo150.txt                              the names of the classes

0 in a map means "other", which does not count: it is void here, and class k is k - 1.
"""

from __future__ import annotations

import functools
import pathlib

from mobilevitv2_jax.data.examples import Description
from mobilevitv2_jax.data.maps import FileMaps, check_split, find_root, list_files
from mobilevitv2_jax.data.prepared_maps import RecordMaps, features, open_prepared
from mobilevitv2_jax.errors import DataError

SPLITS = ()  # those of the archive, or those of the prepared set

EXPECTED = {"training": 20_210, "validation": 2_000}
"""Images in each split of the complete data."""

NAME = "ade20k_150"

_NAMES = "objectInfo150.txt"


def load(split: str, directory: str = "") -> FileMaps | RecordMaps:
    """Opens a split of the archive, or of what `mobilevitv2 prepare ade20k` made.

    Args:
        split: "training" or "validation".
        directory: ADEChallengeData2016, the folder above, or a prepared set.

    Raises:
        DataError: if files are missing, or there is no such split.
    """
    root = find_archive(directory)
    if root:
        return read(split, root)
    return open_prepared("ade20k", NAME, split, directory, "ADEChallengeData2016/annotations")


def find_archive(directory: str) -> pathlib.Path | None:
    """Returns the folder ADEChallengeData2016 that a directory is or holds."""
    return find_root(directory, ("", "ADEChallengeData2016"), "annotations")


def read(split: str, root: pathlib.Path) -> FileMaps:
    """Lists a split of the archive.

    Args:
        split: one of `EXPECTED`.
        root: the folder ADEChallengeData2016.

    Raises:
        DataError: if files are missing, or there is no such split.
    """
    check_split("ade20k", split, EXPECTED)
    names = sorted(path.stem for path in (root / "images" / split).glob("*.jpg"))
    pairs = ((f"images/{split}/{name}.jpg", f"annotations/{split}/{name}.png") for name in names)
    return list_files("ade20k", split, read_names(root), root, pairs, shift=1)


def read_names(root: pathlib.Path) -> tuple[str, ...]:
    """Returns the first name of each of the classes, in the order of their numbers."""
    file = root / _NAMES
    if not file.is_file():
        raise DataError(f"{file} is missing: it is part of the archive, and names the classes")
    rows = [line.split("\t") for line in file.read_text().splitlines()[1:] if line.strip()]
    return tuple(row[-1].replace(";", ",").split(",")[0].strip() for row in rows)


def description(root: pathlib.Path) -> Description:
    """Returns what TFDS is told of the prepared set."""
    return Description(
        name=NAME,
        version="1.0.0",
        features=functools.partial(features, read_names(root)),
        text="ADE20K scene parsing: images with a map of 150 classes each, and 255 for no class.",
        homepage="http://sceneparsing.csail.mit.edu/",
    )
