"""Examples on their way into a data set, and what TFDS is to know of it; see `array_record.py`."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Record:
    """One example as it is to be stored.

    Attributes:
        values: by feature; an image as the `io.BytesIO` of its encoded bytes.
        remark: what was changed in it, for the report; empty for nothing.
    """

    values: Mapping[str, Any]
    remark: str = ""


class Examples(Protocol):
    """The examples of a split, by index: picklable, for each process opens its own."""

    @property
    def num_bytes(self) -> int:
        """Roughly what they will occupy."""

    @property
    def fingerprint(self) -> str:
        """Tells these examples from others: a preparation goes on only with the same."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> Record:
        """Returns one example.

        Raises:
            CorruptError: if it is damaged: it is left out and listed.
        """


@dataclasses.dataclass(frozen=True)
class Description:
    """A data set, as TFDS knows it.

    Attributes:
        name: such as "imagenet2012".
        version: such as "5.1.0".
        features: makes the `tfds.features.FeaturesDict`; picklable.
        text: one paragraph on the set.
        homepage: a page that tells more.
    """

    name: str
    version: str
    features: Callable[[], Any]
    text: str
    homepage: str = ""


def classification_features(class_names: Sequence[str], encoding_format: str | None = None) -> Any:
    """Returns TFDS's features of images with a class, those of its `imagenet2012`.

    Args:
        class_names: name of each class, by label.
        encoding_format: of all images: "jpeg", "png", or None for any mixture.
    """
    import tensorflow_datasets as tfds  # takes a second, and who reads a folder needs it not

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format=encoding_format),
            "label": tfds.features.ClassLabel(names=list(class_names)),
            "file_name": tfds.features.Text(),
        }
    )


def classification_record(data: bytes, label: int, file_name: str, remark: str = "") -> Record:
    """Returns an encoded image and its class, for `classification_features`."""
    return Record({"image": io.BytesIO(data), "label": label, "file_name": file_name}, remark)
