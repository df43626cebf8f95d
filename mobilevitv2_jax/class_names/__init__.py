"""Class names of public data sets, in files beside this one: a line for each class.

ImageNet-1k's are the WordNet lemmas of its synsets in the order of their identifiers, ADE20K's
those of its scene-parsing challenge (SceneParse150), Pascal VOC's those of its development kit,
with the background as class 0.
"""

from __future__ import annotations

import functools
import importlib.resources

DATA_SETS = ("imagenet1k", "voc", "ade20k")


@functools.cache
def load(name: str) -> tuple[str, ...]:
    """Returns the class names of one of `DATA_SETS`, by label.

    Raises:
        ValueError: for another name.
    """
    if name not in DATA_SETS:
        raise ValueError(f"data set must be one of {', '.join(DATA_SETS)}, got {name!r}")
    file = importlib.resources.files(__name__).joinpath(f"{name}.txt")
    return tuple(file.read_text("utf-8").splitlines())


def guess(classes: int, segmentation: bool) -> tuple[str, ...] | None:
    """Returns the names of the data set with that many classes, or None where none has.

    ImageNet-1k has 1,000; of segmentations, Pascal VOC has 21, ADE20K 150, or 151 with the
    background that Hugging Face's conversions have before them.
    """
    if not segmentation:
        return load("imagenet1k") if classes == 1000 else None
    if classes == 151:
        return ("background", *load("ade20k"))
    return {21: load("voc"), 150: load("ade20k")}.get(classes)
