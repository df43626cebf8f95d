"""COCO 2017 images with maps of Pascal VOC's classes, made of COCO's instance annotations.

The published recipe trains on these beside VOC's own. The conversion is that of its authors
(sacmehta/EdgeNets `data_loader/segmentation/coco.py`): of overlapping objects the one that is
listed first wins, crowds are objects too, nothing is void. Images that are small, or show no such
object beside the background, are not used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import pathlib
from typing import Any

import numpy as np

from mobilevitv2_jax.data.examples import Record
from mobilevitv2_jax.data.image import CorruptError, decode
from mobilevitv2_jax.data.maps import Map, check_map
from mobilevitv2_jax.data.prepared_maps import map_record
from mobilevitv2_jax.data.voc import CLASSES
from mobilevitv2_jax.errors import DataError

CATEGORIES = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
"""COCO's number of each class of VOC but the background, in VOC's order."""

SMALLEST = 256  # height and width, in pixels

_MEAN_BYTES = 170_000  # of an image of COCO


class CocoExamples:
    """The `Examples` of a COCO folder, for the writer of prepared sets.

    Args:
        directory: the folder with `annotations/instances_<split>.json` and the images in
            `<split>/`.
        split: such as "train2017".

    Raises:
        DataError: if pycocotools or files are missing.
    """

    def __init__(self, directory: str, split: str = "train2017") -> None:
        self.directory, self.split = directory, split
        self._images = self._select()

    @property
    def num_bytes(self) -> int:
        """Roughly what they will occupy."""
        return _MEAN_BYTES * len(self)

    @property
    def fingerprint(self) -> str:
        """Name, split, length, and a checksum of the images' numbers."""
        content = hashlib.sha256(repr(self._images).encode()).hexdigest()
        return f"coco-voc/{self.split}/{len(self)}-{content[:8]}"

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        info = self._coco.loadImgs(self._images[index])[0]
        file = pathlib.Path(self.directory, self.split, info["file_name"])
        try:
            image = file.read_bytes()
            decode(image)
            label = self.label(info)
            check_map(label, image, len(CLASSES))
        except (CorruptError, OSError) as error:
            raise CorruptError(f"{file.name}: {error}") from error
        if len(np.unique(label)) < 2:
            raise CorruptError(f"{file.name}: not used, for it shows one class alone")
        return map_record(image, label, file.name)

    def label(self, info: dict[str, Any]) -> Map:
        """Returns the map of an image."""
        label = np.zeros((info["height"], info["width"]), np.uint8)
        for number in self._coco.getAnnIds(imgIds=info["id"]):
            annotation = self._coco.anns[number]
            if annotation["category_id"] in CATEGORIES:
                shape = self._coco.annToMask(annotation) > 0
                label[shape & (label == 0)] = 1 + CATEGORIES.index(annotation["category_id"])
        return label

    def _select(self) -> tuple[int, ...]:
        """Returns the numbers of the images that are large enough and show a class of VOC."""
        shown = {
            annotation["image_id"]
            for annotation in self._coco.anns.values()
            if annotation["category_id"] in CATEGORIES
        }
        images = (self._coco.imgs[number] for number in sorted(shown))
        return tuple(
            info["id"] for info in images if min(info["height"], info["width"]) >= SMALLEST
        )

    @functools.cached_property
    def _coco(self) -> Any:
        file = pathlib.Path(self.directory, "annotations", f"instances_{self.split}.json")
        if not file.is_file():
            raise DataError(f"{file} is missing: COCO's instance annotations, as distributed")
        try:
            from pycocotools.coco import COCO
        except ImportError:
            raise DataError(
                'COCO\'s annotations need pycocotools: pip install "mobilevitv2-jax[coco]"'
            ) from None
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it takes
            return COCO(str(file))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_coco"}
