"""Sources: where examples come from, by name, with random access."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import importlib
import itertools
import os
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, UInt8

from mobilevitv2_jax.errors import DataError
from mobilevitv2_jax.models.config import nearest

# Name -> module with `SPLITS` (none: any name) and `load(split, directory)`. Modules, not
# functions: a data set brings heavy readers (scikit-learn, TFDS), which only its own runs should
# import.
_MODULES = {
    "ade20k": "mobilevitv2_jax.data.ade20k",
    "digits": "mobilevitv2_jax.data.digits",
    "digit_scenes": "mobilevitv2_jax.data.digit_scenes",
    "folder": "mobilevitv2_jax.data.folder",
    "masks": "mobilevitv2_jax.data.masks",
    "synthetic": "mobilevitv2_jax.data.synthetic",
    "tfds": "mobilevitv2_jax.data.tfds",
    "voc": "mobilevitv2_jax.data.voc",
}


class Source(Protocol):
    """Examples of one split of a data set, by index.

    Loader processes receive a pickled copy: hold paths and small arrays, not open files.
    """

    @property
    def name(self) -> str:
        """Name under which `load_source` finds the data set."""

    @property
    def split(self) -> str:
        """Part of the data set."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, by label."""

    @property
    def fingerprint(self) -> str:
        """Name, split and length: a run resumes only on the data it was started with."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example.

        "image" is encoded (bytes) or uint8 RGB [height, width, 3]; "label" is the class in
        int32, or a map of classes in uint8 [height, width]; "name", where there is one, is
        that of the file.

        Raises:
            CorruptError: if the record is damaged.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A `Source` held in memory.

    Attributes:
        name: name of the data set.
        split: part of the data set.
        images: RGB images, all of one size.
        labels: class of each image.
        class_names: name of each class, by label.
    """

    name: str
    split: str
    images: UInt8[np.ndarray, "examples height width 3"]
    labels: Int[np.ndarray, " examples"]
    class_names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Name, split and length, as `digits/train/1437`."""
        return f"{self.name}/{self.split}/{len(self)}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": np.int32(self.labels[index])}


@dataclasses.dataclass(frozen=True, eq=False)
class JoinedSource:
    """Several sources with the same classes, one after the other.

    Attributes:
        parts: the sources.
    """

    parts: tuple[Source, ...]

    def __post_init__(self) -> None:
        for part in self.parts[1:]:
            if part.class_names != self.class_names:
                raise DataError(
                    f"{part.fingerprint} must have the classes of {self.parts[0].fingerprint}, "
                    f"{len(self.class_names)} with the same names, and has others "
                    f"({len(part.class_names)})"
                )

    @property
    def name(self) -> str:
        """That of the parts."""
        return self.parts[0].name

    @property
    def split(self) -> str:
        """That of the parts."""
        return self.parts[0].split

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the parts."""
        return self.parts[0].class_names

    @property
    def fingerprint(self) -> str:
        """Those of the parts."""
        return "+".join(part.fingerprint for part in self.parts)

    @functools.cached_property
    def _ends(self) -> tuple[int, ...]:
        return tuple(itertools.accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]


def load_source(name: str, split: str, directory: str = "", **order: Any) -> Source:
    """Opens a split of a data set.

    Args:
        name: the data set, such as "digits".
        split: a split of that data set.
        directory: where a data set that is read from disk finds its files; several of them,
            separated by commas, are read as one.
        **order: what "synthetic", and no other, is to be like: `num_labels`, `label_is_map`.

    Returns:
        The source.

    Raises:
        ValueError: for an unknown name or split, naming the allowed ones.
        DataError: if the files of a data set are missing or unfit.
    """
    _require("data set", name, tuple(_MODULES))
    module = importlib.import_module(_MODULES[name])
    if module.SPLITS:
        _require(f"split of {name}", split, module.SPLITS)
    roots = [os.path.expanduser(root.strip()) for root in directory.split(",")]
    parts = [module.load(split, root, **order) for root in roots]
    return parts[0] if len(parts) == 1 else JoinedSource(tuple(parts))


def _require(what: str, got: str, allowed: tuple[str, ...]) -> None:
    if got not in allowed:
        hint = nearest(got, allowed)
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, got {got!r}{hint}")
