"""ImageNet (ILSVRC2012): its original archives as examples to be written as a TFDS data set.

Classes and their order, the features, and the labels of the validation images are those of TFDS's
`imagenet2012`. Its odd files, one PNG and 22 CMYK JPEGs, are found by what is in them and become
RGB JPEGs, as in TFDS since version 3.0.0.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int, Shaped

from mobilevitv2_jax.data import archive
from mobilevitv2_jax.data.array_record import SplitReport
from mobilevitv2_jax.data.examples import (
    Description,
    Record,
    classification_features,
    classification_record,
)
from mobilevitv2_jax.data.image import CorruptError, to_rgb_jpeg
from mobilevitv2_jax.data.parallel import shared_out
from mobilevitv2_jax.errors import DataError

OFFICIAL = {"train": 1_281_167, "validation": 50_000}
"""Number of images of each split."""

_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def _packaged_lines(file: str) -> list[str]:
    import tensorflow_datasets as tfds  # takes a second

    return tfds.core.tfds_path(f"datasets/imagenet2012/{file}").read_text().split()


def class_names() -> list[str]:
    """Returns the 1,000 WordNet names, such as "n01440764", by label."""
    return _packaged_lines("labels.txt")


def description() -> Description:
    """Returns what TFDS is to know."""
    return Description(
        name="imagenet2012",
        version="5.1.0",
        features=functools.partial(classification_features, tuple(class_names()), "jpeg"),
        text="ILSVRC2012, prepared from its original archives.",
        homepage="https://image-net.org/",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ArchiveExamples:
    """The images in an archive, as `Examples`.

    Attributes:
        path: the archive.
        names: of the images, as bytes.
        offsets: where each begins in the archive, in bytes.
        sizes: length of each in bytes.
        labels: class of each.
    """

    path: str
    names: Shaped[np.ndarray, " images"]
    offsets: Int[np.ndarray, " images"]
    sizes: Int[np.ndarray, " images"]
    labels: Int[np.ndarray, " images"]

    @property
    def num_bytes(self) -> int:
        """What the images occupy."""
        return int(self.sizes.sum())

    @property
    def fingerprint(self) -> str:
        """Name and size of the archive."""
        path = pathlib.Path(self.path)
        return f"{path.name}, {path.stat().st_size} bytes"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Record:
        name = self.names[index].decode()
        data = archive.read(self.path, int(self.offsets[index]), int(self.sizes[index]))
        try:
            data, remark = to_rgb_jpeg(data)
        except CorruptError as error:
            raise CorruptError(f"{name}: {error}") from error
        label = int(self.labels[index])
        return classification_record(data, label, name, remark and f"{name}: {remark}")


def train_examples(
    path: str, processes: int = 0, tell: Callable[[int, int], None] = lambda done, total: None
) -> ArchiveExamples:
    """Finds the images in the archive of class archives, `ILSVRC2012_img_train.tar`.

    Args:
        path: the archive.
        processes: how many look into the class archives; 0 looks in this one.
        tell: is called with the number of class archives that are done, and of all.

    Raises:
        DataError: if it is not that archive, or not whole.
    """
    labels = {name: label for label, name in enumerate(class_names())}
    classes = list(archive.members(path))
    for member in classes:
        if member.name.removesuffix(".tar") not in labels:
            raise DataError(
                f"{path} has the member {member.name}, which is no archive of one of the 1,000 "
                "classes, such as n01440764.tar: this is not ILSVRC2012_img_train.tar"
            )
    found: dict[int, list[archive.Member]] = {}
    with shared_out(functools.partial(_look_into, path), classes, processes) as results:
        for name, images in results:
            found[labels[name.removesuffix(".tar")]] = images
            tell(len(found), len(classes))
    ordered = sorted(found)
    counts = [len(found[label]) for label in ordered]
    together = [image for label in ordered for image in found[label]]
    return _examples(path, together, np.repeat(ordered, counts))


def _look_into(
    path: str, classes: Sequence[archive.Member]
) -> Iterator[tuple[str, list[archive.Member]]]:
    for member in classes:
        yield member.name, list(archive.members(path, member))


def validation_examples(path: str) -> ArchiveExamples:
    """Finds the images in the flat archive, `ILSVRC2012_img_val.tar`.

    Raises:
        DataError: if it is not that archive, or not whole.
    """
    number_of = {name: label for label, name in enumerate(class_names())}
    truth = [number_of[name] for name in _packaged_lines("validation_labels.txt")]
    images = sorted(archive.members(path))
    labels = []
    for image in images:
        match = _VALIDATION_NAME.fullmatch(image.name)
        number = int(match[1]) if match else 0
        if not 0 < number <= len(truth):
            raise DataError(
                f"{path} has the member {image.name}, which is no validation image, such as "
                "ILSVRC2012_val_00000001.JPEG: this is not ILSVRC2012_img_val.tar"
            )
        labels.append(truth[number - 1])  # the labels are in the order of the names
    return _examples(path, images, np.array(labels))


def _examples(
    path: str, images: Sequence[archive.Member], labels: Int[np.ndarray, " images"]
) -> ArchiveExamples:
    if not images:
        raise DataError(f"{path} has no images")
    names, offsets, sizes = zip(*images, strict=True)
    if len(set(names)) != len(names):
        raise DataError(f"{path} has {len(names) - len(set(names))} images more than once")
    return ArchiveExamples(
        path, np.array(names, "S"), np.array(offsets), np.array(sizes), labels.astype(np.int16)
    )


def check_complete(splits: Mapping[str, ArchiveExamples]) -> None:
    """Checks that the archives have every class and the official number of images.

    Raises:
        DataError: if not.
    """
    for split, examples in splits.items():
        names = class_names()
        missing = [names[label] for label in np.setdiff1d(range(len(names)), examples.labels)]
        if missing:
            raise DataError(
                f"{examples.path} has no images of {len(missing)} of the 1,000 classes "
                f"({', '.join(missing[:5])}{', ...' * (len(missing) > 5)}): give the whole "
                "archive, or --allow-partial to go on without them"
            )
        if len(examples) != OFFICIAL[split]:
            raise DataError(
                f"{examples.path} has {len(examples):,} images, and {split} of ILSVRC2012 has "
                f"{OFFICIAL[split]:,}: give the whole archive, or --allow-partial to go on with "
                "these"
            )


def check_written(reports: Mapping[str, SplitReport]) -> None:
    """Checks that no image was left out.

    Raises:
        DataError: if some were, naming them.
    """
    for split, report in reports.items():
        if report.corrupt:
            raise DataError(
                f"{len(report.corrupt)} images of {split} are damaged "
                f"({'; '.join(report.corrupt[:5])}{'; ...' * (len(report.corrupt) > 5)}): get the "
                "archive again, or give --allow-partial to go on without them"
            )
