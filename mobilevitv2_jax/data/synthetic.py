"""Generated data in the shape of a real set: measures a host and its devices before data is there.

Images are uint8 noise of 375 x 500 pixels, the size in which most of ImageNet and of Pascal VOC is
stored, so that cropping and resizing cost what they will cost. They are arrays: decoding JPEG,
some milliseconds per image, is not part of what they measure. Nothing can be learnt from them.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import numpy as np

SPLITS = ()  # any: a config keeps the names that its own data set gives them

SIZE = (375, 500)  # height and width of the stored images, in pixels
EXAMPLES = {"train": 1_281_167}  # as ImageNet, so that epochs are as long
HELD_OUT = 1_000  # examples of any other split: an evaluation of noise should be short
_CLASSES, _MAP_CLASSES = 1000, 21  # those of ImageNet and of Pascal VOC
_VOID = 255


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """A `Source` of noise, made when it is asked for, always the same by split and index.

    Attributes:
        split: any name; "train" is as long as ImageNet's.
        classes: number of classes.
        label_is_map: whether a label is a map of classes, as large as the image.
    """

    split: str
    classes: int
    label_is_map: bool

    name = "synthetic"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Numbers."""
        return tuple(f"class {number}" for number in range(self.classes))

    @property
    def fingerprint(self) -> str:
        """Name with classes and kind of label, split and length."""
        kind = "maps" if self.label_is_map else "classes"
        return f"{self.name}-{self.classes}-{kind}/{self.split}/{len(self)}"

    def __len__(self) -> int:
        return EXAMPLES.get(self.split, HELD_OUT)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((zlib.crc32(self.split.encode()), index))
        image = rng.integers(256, size=(*SIZE, 3), dtype=np.uint8)
        if not self.label_is_map:
            return {"image": image, "label": np.int32(rng.integers(self.classes))}
        label = rng.integers(self.classes, size=SIZE, dtype=np.uint8)
        label[:5] = _VOID  # some pixels of a real map have no class
        return {"image": image, "label": label}


def load(
    split: str, directory: str = "", *, num_labels: int | None = None, label_is_map: bool = False
) -> Synthetic:
    """Returns the noise of a split.

    Args:
        split: any name.
        directory: unused; nothing is read.
        num_labels: number of classes; by default 1000, or 21 where labels are maps.
        label_is_map: whether labels are those of a segmentation.

    Raises:
        ValueError: for a number of classes that the labels cannot tell apart.
    """
    classes = num_labels or (_MAP_CLASSES if label_is_map else _CLASSES)
    if label_is_map and classes > _VOID:
        raise ValueError(
            f"num_labels must be at most {_VOID} for synthetic maps, which are uint8 and keep "
            f"{_VOID} for pixels without a class, got {classes}"
        )
    return Synthetic(split, classes, label_is_map)
