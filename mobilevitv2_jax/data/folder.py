"""Images in a folder for each class, or in a list of paths and labels, read where they are.

What a split is, for a directory (or a file whose name ends in .csv):

- `train/` and `val/` in it, each with a folder for each class; or `train.csv` and `val.csv`;
- without `val`, a fifth of every class is held out, always the same files;
- without `train` either, the directory itself has the folders of the classes.

A list has two columns, path and label, and may name them in its first line. Paths start from
the list's own directory; labels are names of classes, or numbers.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

import numpy as np
from jaxtyping import Int

from mobilevitv2_jax.data.examples import (
    Description,
    Record,
    classification_features,
    classification_record,
)
from mobilevitv2_jax.data.image import CorruptError, decode
from mobilevitv2_jax.errors import DataError
from mobilevitv2_jax.files import size_of

SPLITS = ("train", "val")

HELD_OUT = 0.2  # of every class, where there is no val/
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of a split.

    Attributes:
        root: where paths start.
        paths: of the images, by class.
    """

    root: pathlib.Path
    paths: Mapping[str, list[str]]


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
        """Returns the encoded image, its label and its path.

        Raises:
            CorruptError: if the file cannot be read, or is there no more.
        """
        path = self.path(index)
        try:
            image = path.read_bytes()
        except OSError as error:
            raise CorruptError(f"cannot read {path}: {error.strerror or error}") from error
        return {
            "image": image,
            "label": np.int32(self.labels[index]),
            "name": os.fspath(path),
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
    return load_both(directory)[split]


def load_both(directory: str, val: str = "") -> dict[str, FolderSource]:
    """Lists the images of both splits.

    Args:
        directory: as for `load`.
        val: a folder of classes, or a list, that holds the split "val"; all of `directory` is
            "train" then.

    Raises:
        DataError: as for `load`.
    """
    train, held_out = (_read(directory), _read(val)) if val else _read_both(directory)
    names = _order(train.paths)
    if held_out is None:
        train, held_out = _hold_out(train)
    unknown = sorted(held_out.paths.keys() - train.paths.keys())
    if unknown:
        raise DataError(
            f"{held_out.root}: {unknown[0]!r} is no class of {train.root}, "
            f"which has {len(names)}: {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
        )
    return {
        "train": _source("train", train, names),
        "val": _source("val", held_out, names),
    }


def _read_both(directory: str) -> tuple[Listing, Listing | None]:
    """Returns the images to train on, and those that are held out already."""
    root = pathlib.Path(directory)
    parts = []
    for split in SPLITS:
        found = (root / split, root / f"{split}.csv", root / f"{split}.CSV")
        parts.append(next((path for path in found if path.exists()), None))
    train, val = parts
    if val and not train:
        raise DataError(f"{root} has images to hold out, in {val.name}, and no train beside it")
    if train and train.is_dir():
        _check_beside(root)
    return _read(train or directory), _read(val) if val else None


def _check_beside(root: pathlib.Path) -> None:
    """Refuses a train/ among folders of classes: it may be a class, and they would be dropped."""
    names = (name for name in _folders(root) if name not in (*SPLITS, "test"))
    found = next((name for name in names if next(_images(root / name, root), None)), None)
    if found:
        raise DataError(
            f"{root} has images in {found}/ beside train/: if train is a class, put the folders "
            f"of all classes into {root / 'train'}; else move {found}/ elsewhere"
        )


def _folders(folder: pathlib.Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _read(place: str | pathlib.Path) -> Listing:
    path = pathlib.Path(place)
    if place and path.is_dir():
        return _walk(path)
    if path.suffix.lower() == ".csv" and path.is_file():
        return _read_list(path)
    found = "this is neither" if place and path.exists() else "there is no such folder or file"
    raise DataError(
        "images must be in a folder for each class, or in a .csv of paths and labels; "
        f"{found}: {str(place)!r}"
    )


def _walk(folder: pathlib.Path) -> Listing:
    """Returns the images below each folder in `folder`, in the order of their names."""
    classes = _folders(folder)
    if not classes:
        raise DataError(f"{folder} must have a folder of images for each class, and has no folder")
    paths = {name: sorted(_images(folder / name, folder)) for name in classes}
    empty = [name for name, found in paths.items() if not found]
    if empty:
        raise DataError(
            f"{folder / empty[0]} has no images ({', '.join(EXTENSIONS)}): "
            "remove it, if it is no class"
        )
    return Listing(folder, paths)


def _images(folder: pathlib.Path, root: pathlib.Path) -> Iterator[str]:
    above = {os.fspath(folder): {_identity(root)}}  # what a folder lies in: links may lead back
    for parent, folders, files in os.walk(folder, followlinks=True):
        here = _identity(parent)
        if here in above[parent]:
            folders.clear()
            continue
        within = above[parent] | {here}
        above.update((os.path.join(parent, name), within) for name in folders)
        for file in files:
            if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                yield os.path.relpath(os.path.join(parent, file), root)


def _identity(folder: str | pathlib.Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _read_list(table: pathlib.Path) -> Listing:
    paths: dict[str, list[str]] = {}
    with open_text(table) as file:
        for number, row in enumerate(csv.reader(file), 1):
            cells = [cell.strip() for cell in row]
            if not cells or (number == 1 and cells == ["path", "label"]):
                continue
            if len(cells) != 2 or not all(cells):
                raise DataError(f"{table}:{number} must be a path and a label, got {row}")
            path, label = cells
            if not (table.parent / path).is_file():
                raise DataError(f"{table}:{number}: there is no file {table.parent / path}")
            paths.setdefault(label, []).append(path)
    if not paths:
        raise DataError(f"{table} lists no images: a line each, with a path and a label")
    return Listing(table.parent, paths)


@contextlib.contextmanager
def open_text(file: pathlib.Path) -> Iterator[TextIO]:
    """Opens a list in UTF-8, with or without the mark that editors on Windows put before it.

    Raises:
        DataError: if what is read inside is no UTF-8, or no CSV.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield stream
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} must be a list in UTF-8: {error}") from error


def _order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns names in order: as numbers, if all of them are."""
    names = sorted(names)
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=int) if numeric else names)


def _hold_out(listing: Listing) -> tuple[Listing, Listing]:
    """Splits every class; which files are held out depends on their paths alone."""
    train, val = {}, {}
    for name, paths in listing.paths.items():
        if len(paths) < 2:
            raise DataError(
                f"class {name!r} has one image: to hold some out, every class must have two; "
                "or give a val/ of your own"
            )
        ranked = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
        count = max(1, round(HELD_OUT * len(paths)))
        val[name], train[name] = sorted(ranked[:count]), sorted(ranked[count:])
    return Listing(listing.root, train), Listing(listing.root, val)


def _source(split: str, listing: Listing, names: tuple[str, ...]) -> FolderSource:
    by_label = [listing.paths.get(name, []) for name in names]
    labels = np.repeat(np.arange(len(names), dtype=np.int32), [len(paths) for paths in by_label])
    paths = np.array([os.fsencode(path) for paths in by_label for path in paths])
    return FolderSource(split, names, os.fspath(listing.root.absolute()), paths, labels)


@dataclasses.dataclass(frozen=True, eq=False)
class FolderExamples:
    """The images of a source as `Examples`, stored as they are.

    Attributes:
        source: the images.
    """

    source: FolderSource

    @functools.cached_property
    def num_bytes(self) -> int:
        """Size of the files, of which those that are there no more count nothing."""
        return sum(size_of(self.source.path(index)) for index in range(len(self)))

    @property
    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        name = os.fspath(self.source.path(index).relative_to(self.source.root))
        try:
            example = self.source[index]
            decode(example["image"])
        except CorruptError as error:
            raise CorruptError(f"{name}: {error}") from error
        return classification_record(example["image"], int(example["label"]), name)


def description(name: str, class_names: tuple[str, ...]) -> Description:
    """Returns what TFDS is to know of a set made of a folder."""
    return Description(
        name=name,
        version="1.0.0",
        features=functools.partial(classification_features, class_names),
        text="Images with a class, prepared from files.",
    )
