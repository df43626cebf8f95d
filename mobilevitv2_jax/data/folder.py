"""Images in a folder for each class, or in a list of paths and labels, read where they are.

What a split is, for a directory (or a file whose name ends in .csv):

- `train/` and `val/` in it, each with a folder for each class; or `train.csv` and `val.csv`;
- without `val`, a fifth of every class is held out, always the same files;
- without `train` either, the directory itself has the folders of the classes.

A list has two columns, path and label, and may name them in its first line. Paths start from
the list's own directory; labels are names of classes, or numbers.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from mobilevitv2_jax.errors import DataError

SPLITS = ("train", "val")

HELD_OUT = 0.2  # of every class, where there is no val/
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

Listing = Mapping[str, list[str]]
"""Paths of images by class; from the directory that holds them all."""


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """A `Source` of image files.

    Attributes:
        split: "train" or "val".
        class_names: name of each class, by label.
        root: where paths start.
        paths: of the images, as bytes: an array of them is small, and quick to send to a worker.
        labels: class of each image.
    """

    split: str
    class_names: tuple[str, ...]
    root: str
    paths: np.ndarray
    labels: Int[np.ndarray, " examples"]

    name = "folder"

    @property
    def fingerprint(self) -> str:
        """Directory's name, split, length, and a checksum of paths and labels."""
        content = hashlib.sha256(self.paths.tobytes() + self.labels.tobytes()).hexdigest()
        return f"{pathlib.Path(self.root).name}/{self.split}/{len(self)}-{content[:8]}"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.path(index).read_bytes(),
            "label": np.int32(self.labels[index]),
        }

    def path(self, index: int) -> pathlib.Path:
        """Returns the file of an example."""
        return pathlib.Path(self.root, os.fsdecode(self.paths[index]))


def load(split: str, directory: str = "") -> FolderSource:
    """Lists the images of a split.

    Args:
        split: "train" or "val".
        directory: a folder, or a list whose name ends in .csv.

    Raises:
        DataError: if there are no images, a class has none, or a list cannot be read.
    """
    splits, names = read(directory)
    return _source(split, splits[split], names, directory)


def read(directory: str) -> tuple[dict[str, Listing], tuple[str, ...]]:
    """Returns the images of both splits by class, and the names of the classes in order."""
    root = pathlib.Path(directory)
    if not directory or not root.exists():
        raise DataError(
            "config.data.directory must be a folder of images or a .csv of paths and labels, "
            f"got {directory!r}"
        )
    train, val = (_listing(root, split) for split in SPLITS)
    if val is not None and train is None:
        raise DataError(f"{root} has images to hold out, in val, and none to train on, in train")
    if train is None:
        train = _read_list(root) if root.suffix == ".csv" else _walk(root, root)
    names = _order(train)
    if val is None:
        train, val = _hold_out(train)
    unknown = sorted(val.keys() - train.keys())
    if unknown:
        raise DataError(
            f"{root}: {unknown[0]!r} of val is no class of train ({len(names)} classes)"
        )
    return {"train": train, "val": val}, names


def _listing(root: pathlib.Path, split: str) -> Listing | None:
    """Returns the images of a split that has a folder or a list of its own."""
    folder, table = root / split, root / f"{split}.csv"
    if folder.is_dir():
        return _walk(folder, root)
    return _read_list(table) if table.is_file() else None


def _walk(folder: pathlib.Path, root: pathlib.Path) -> Listing:
    """Returns the images below each folder in `folder`, in the order of their names."""
    classes = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not classes:
        raise DataError(f"{folder} must have a folder of images for each class, and has no folder")
    listing = {name: sorted(_images(folder / name, root)) for name in classes}
    empty = [name for name, paths in listing.items() if not paths]
    if empty:
        raise DataError(
            f"{folder / empty[0]} has no images ({', '.join(EXTENSIONS)}): "
            "remove it, if it is no class"
        )
    return listing


def _images(folder: pathlib.Path, root: pathlib.Path) -> Iterator[str]:
    for parent, _, files in os.walk(folder, followlinks=True):
        for file in files:
            if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                yield os.path.relpath(os.path.join(parent, file), root)


def _read_list(table: pathlib.Path) -> Listing:
    listing: dict[str, list[str]] = {}
    with table.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if not row or (number == 1 and [cell.strip() for cell in row] == ["path", "label"]):
                continue
            if len(row) != 2 or not all(cell.strip() for cell in row):
                raise DataError(f"{table}:{number} must be a path and a label, got {row}")
            path, label = (cell.strip() for cell in row)
            if not (table.parent / path).is_file():
                raise DataError(f"{table}:{number}: there is no file {table.parent / path}")
            listing.setdefault(label, []).append(path)
    if not listing:
        raise DataError(f"{table} lists no images: a line each, with a path and a label")
    return listing


def _order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns names in order: as numbers, if all of them are."""
    names = sorted(names)
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=int) if numeric else names)


def _hold_out(listing: Listing) -> tuple[Listing, Listing]:
    """Splits every class; which files are held out depends on their paths alone."""
    train, val = {}, {}
    for name, paths in listing.items():
        if len(paths) < 2:
            raise DataError(
                f"class {name!r} has one image: to hold some out, every class must have two; "
                "or give a val/ of your own"
            )
        ranked = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
        count = max(1, round(HELD_OUT * len(paths)))
        val[name], train[name] = sorted(ranked[:count]), sorted(ranked[count:])
    return train, val


def _source(split: str, listing: Listing, names: tuple[str, ...], directory: str) -> FolderSource:
    root = pathlib.Path(directory)
    paths = [os.fsencode(path) for name in names for path in listing.get(name, ())]
    counts = [len(listing.get(name, ())) for name in names]
    labels = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    parent = root.parent if root.suffix == ".csv" else root
    return FolderSource(split, names, os.fspath(parent.absolute()), np.array(paths), labels)
