"""Prepared sets of images and maps of classes: TFDS data sets, written and read.

Maps are grey PNGs of one channel, every value as it was, 255 included.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2

from mobilevitv2_jax.data.array_record import SplitReport
from mobilevitv2_jax.data.examples import Examples, Record
from mobilevitv2_jax.data.image import CorruptError, decode
from mobilevitv2_jax.data.maps import FileMaps, Map, check_map, decode_map
from mobilevitv2_jax.errors import DataError
from mobilevitv2_jax.files import size_of

IMAGE, MAP, FILE_NAME = "image", "segmentation", "file_name"
"""Features of a prepared set."""

_SHOWN = 5  # of what cannot be used


@dataclasses.dataclass(frozen=True, eq=False)
class RecordMaps:
    """A `Source` of the records of a prepared set.

    Attributes:
        name: name of the data set.
        split: part of the data set.
        class_names: name of each class.
        records: the examples, as `data/tfds.py` opens them.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    records: Any

    @property
    def fingerprint(self) -> str:
        """Name, that it is prepared, split and length."""
        return f"{self.name}-prepared/{self.split}/{len(self)}"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        label = decode_map(record[MAP])
        try:
            check_map(label, record[IMAGE], len(self.class_names))
        except CorruptError as error:
            raise CorruptError(f"record {index} of {self.fingerprint}: {error}") from error
        return {"image": record[IMAGE], "label": label, "name": record[FILE_NAME].decode()}


def open_prepared(
    name: str, dataset: str, split: str, directory: str, distributed: str
) -> RecordMaps:
    """Opens a split that `mobilevitv2 prepare` has made.

    Args:
        name: name of the source, and of the verb.
        dataset: name of the TFDS data set.
        split: a split, or several joined by "+".
        directory: the data set, or a folder that holds it.
        distributed: the folder that would have been read where it is.

    Raises:
        DataError: if there is no such set or split.
    """
    from mobilevitv2_jax.data import tfds  # a second, which reading files does not need

    inner = pathlib.Path(directory, dataset)
    try:
        builder = tfds.find(str(inner) if directory and inner.is_dir() else directory)
        if builder.info.name != dataset:
            raise DataError(f"it holds {builder.info.name}")
    except DataError as error:
        raise DataError(
            f"config.data.directory must hold {distributed}, or {dataset} as `mobilevitv2 prepare "
            f"{name}` makes it, got {directory!r}"
        ) from error
    class_names = tuple(builder.info.features[MAP].names)
    return RecordMaps(name, split, class_names, tfds.open_records(builder, split))


def features(class_names: Sequence[str]) -> Any:
    """Returns the features of a prepared set: images as JPEG, maps as grey PNG."""
    import tensorflow_datasets as tfds  # a second, which reading files does not need

    shape = (None, None, 1)
    return tfds.features.FeaturesDict(
        {
            IMAGE: tfds.features.Image(encoding_format="jpeg"),
            MAP: tfds.features.LabeledImage(
                labels=list(class_names), shape=shape, encoding_format="png"
            ),
            FILE_NAME: tfds.features.Text(),
        }
    )


@dataclasses.dataclass(frozen=True, eq=False)
class MapExamples:
    """The `Examples` of a source of files, for the writer of prepared sets.

    Attributes:
        source: the files.
    """

    source: FileMaps

    @functools.cached_property
    def num_bytes(self) -> int:
        """Size of the images; maps add some percent."""
        source = self.source
        return sum(size_of(os.path.join(source.root, os.fsdecode(p))) for p in source.images)

    @property
    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        example, name = self.source[index], self.source.file_name(index)
        try:
            decode(example["image"])
        except CorruptError as error:
            raise CorruptError(f"{name}: {error}") from error
        return map_record(example["image"], example["label"], name)


def map_record(image: bytes, label: Map, file_name: str) -> Record:
    """Returns an example as it is stored: the image as it was, the map as a grey PNG."""
    _, png = cv2.imencode(".png", label)
    values: dict[str, Any] = {
        IMAGE: io.BytesIO(image),
        MAP: io.BytesIO(png.tobytes()),
        FILE_NAME: file_name,
    }
    return Record(values)


def check_complete(splits: Mapping[str, Examples], expected: Mapping[str, int]) -> None:
    """Checks that splits have as many images as the complete data.

    Raises:
        DataError: if one has not.
    """
    for split, examples in splits.items():
        if len(examples) != expected.get(split, len(examples)):
            raise DataError(
                f"{split} has {len(examples):,} images, and the complete data {expected[split]:,}: "
                "get the rest, or go on with --allow-partial"
            )


def check_written(reports: Mapping[str, SplitReport]) -> None:
    """Checks that no example was left out.

    Raises:
        DataError: if some were: they are counted, the first named.
    """
    for split, report in reports.items():
        if report.corrupt:
            shown = "; ".join(report.corrupt[:_SHOWN]) + "; ..." * (len(report.corrupt) > _SHOWN)
            raise DataError(
                f"{len(report.corrupt):,} examples of {split} cannot be used: {shown}. Mend them "
                "and run the same command again, or leave them out with --allow-partial"
            )
