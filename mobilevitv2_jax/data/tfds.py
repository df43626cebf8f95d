"""Data sets of TFDS on disk, read by index and without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import os
import resource
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from mobilevitv2_jax.data.image import CorruptError
from mobilevitv2_jax.data.tfrecord import open_tfrecords
from mobilevitv2_jax.errors import DataError

SPLITS = ()  # those of the set, and parts of them such as "train[:99%]"


class Records(Protocol):
    """Examples with all their features, by index; images are encoded."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example.

        Raises:
            CorruptError: if the record is damaged.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """A `Source` of images and classes in a TFDS data set.

    Attributes:
        dataset: name and version, such as "imagenet2012/5.1.0".
        split: part of the data set.
        class_names: name of each class, by label.
        image: name of the feature that holds the image.
        label: name of the feature that holds the class.
        records: the examples.
    """

    dataset: str
    split: str
    class_names: tuple[str, ...]
    image: str
    label: str
    records: Records

    name = "tfds"

    @property
    def fingerprint(self) -> str:
        """Data set, split and length, as `imagenet2012/5.1.0/train/1281167`."""
        return f"{self.dataset}/{self.split}/{len(self)}"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        label = int(record[self.label])
        if not 0 <= label < len(self.class_names):
            raise DataError(
                f"record {index} of {self.fingerprint} has the label {label}, and its classes are "
                f"0 to {len(self.class_names) - 1}: this split is not labelled, or damaged"
            )
        example = {"image": record[self.image], "label": np.int32(label)}
        if "file_name" in record:
            example["name"] = record["file_name"].decode()
        return example


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecords:
    """The `Records` of a split in ArrayRecord files.

    Attributes:
        where: what messages call them.
        source: TFDS's own reader.
    """

    where: str
    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self.source[index]
        except (RuntimeError, ValueError) as error:  # Riegeli has checksums
            raise CorruptError(f"cannot read record {index} of {self.where}: {error}") from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        allow_open_files()  # this is another process


def load(split: str, directory: str = "") -> TfdsSource:
    """Opens a split for classification.

    Args:
        split: a split, or a part of one as TFDS writes it: "validation", "train[:99%]".
        directory: what `find` takes.

    Raises:
        DataError: if there is no such set or split, or it has no images with classes.
    """
    builder = find(directory)
    features = builder.info.features
    image = _feature(builder, tfds.features.Image)
    label = _feature(builder, tfds.features.ClassLabel)
    return TfdsSource(
        dataset=f"{builder.info.name}/{builder.info.version}",
        split=split,
        class_names=tuple(features[label].names),
        image=image,
        label=label,
        records=open_records(builder, split),
    )


def find(directory: str) -> Any:
    """Returns the builder of the data set in a directory.

    Args:
        directory: a data set, `<data_dir>/<name>/<version>`; or a folder above it, if there is
            no other in it.

    Raises:
        DataError: if there is no set, or more than one.
    """
    root = epath.Path(directory)
    file = "dataset_info.json"
    depths = (file, f"*/{file}", f"*/*/{file}", f"*/*/*/{file}")
    found = next(filter(None, (sorted(root.glob(depth)) for depth in depths)), [])
    whole = [path.parent for path in found if not path.parent.name.endswith(".incomplete")]
    if not directory or not whole:
        raise DataError(
            f"config.data.directory must be a TFDS data set, with a {file}, or a folder "
            f"that holds one, got {directory!r}; `mobilevitv2 prepare` makes one"
        )
    if len(whole) > 1:
        names = ", ".join(os.fspath(path) for path in whole)
        raise DataError(f"config.data.directory must be one of {names}, got {directory!r}")
    return tfds.builder_from_directory(whole[0])


def open_records(builder: Any, split: str) -> Records:
    """Returns the examples of a split, with all features; images are encoded.

    Args:
        builder: what `find` returns.
        split: a split, or a part of one.

    Raises:
        DataError: if there is no such split, or files are missing.
    """
    info = builder.info
    where = f"{info.name}/{info.version}/{split}"
    try:
        instructions = info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{builder.data_dir} has no split {split!r}; it has {', '.join(info.splits)}"
        ) from error
    _check_files(instructions)
    encoded = {
        name: tfds.decode.SkipDecoding()
        for name, feature in info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    form = info.file_format.value
    if form == "tfrecord":
        parse = functools.partial(info.features.deserialize_example_np, decoders=encoded)
        return open_tfrecords(where, instructions, parse)
    if form != "array_record":
        raise DataError(f"{builder.data_dir} must be in ArrayRecord or TFRecord files, got {form}")
    allow_open_files()
    return ArrayRecords(where, builder.as_data_source(split, decoders=encoded))


def allow_open_files() -> None:
    """Raises this process's limit of open files, as far as it may: a set has a file per shard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _check_files(instructions: Sequence[Any]) -> None:
    missing = [file.filename for file in instructions if not epath.Path(file.filename).exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(instructions)} shards are missing, such as {missing[0]}: "
            "copy them again, or prepare the data again"
        )


def _feature(builder: Any, kind: type) -> str:
    """Returns the name of the one feature of a kind."""
    features = builder.info.features
    names = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(names) != 1:
        raise DataError(
            f"{builder.data_dir} must have one feature of the kind {kind.__name__} to train a "
            f"classifier on, and has {len(names)} among {', '.join(features)}"
        )
    return names[0]
