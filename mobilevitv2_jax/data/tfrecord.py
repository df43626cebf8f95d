"""TFRecord files by index: where each record begins is found once, and kept beside no data.

A record is its length (8 bytes), a checksum of that (4), its content, and a checksum of that (4).
Format: tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import google_crc32c
import numpy as np
from jaxtyping import Int

from mobilevitv2_jax.data.image import CorruptError
from mobilevitv2_jax.errors import DataError
from mobilevitv2_jax.files import cache_directory

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_THREADS = 32  # they wait for the disk, not for a core


class Instruction(Protocol):
    """Which examples of a file belong to a split: TFDS's `FileInstruction`."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


@dataclasses.dataclass(frozen=True, eq=False)
class TfRecords:
    """The records of some files, by index.

    Attributes:
        where: what messages call them.
        parse: makes an example of a record.
        files: paths.
        file: which of the files each record is in.
        start: where each record begins in its file, in bytes.
        length: of the content of each record, in bytes.
    """

    where: str
    parse: Callable[[bytes], dict[str, Any]]
    files: tuple[str, ...]
    file: Int[np.ndarray, " records"]
    start: Int[np.ndarray, " records"]
    length: Int[np.ndarray, " records"]

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.files[self.file[index]]
        start, length = int(self.start[index]), int(self.length[index])
        with open(path, "rb") as file:
            size = _HEADER.size + length + _FOOTER.size
            data = os.pread(file.fileno(), size, start)
        content = data[_HEADER.size : -_FOOTER.size]
        whole = len(data) == size and _length(data[: _HEADER.size]) == length
        if not whole or _masked(content) != _FOOTER.unpack(data[-_FOOTER.size :])[0]:
            raise CorruptError(
                f"record {index} of {self.where} is damaged: its checksum is another "
                f"({path}, byte {start})"
            )
        return self.parse(content)


def open_tfrecords(
    where: str, instructions: Sequence[Instruction], parse: Callable[[bytes], dict[str, Any]]
) -> TfRecords:
    """Opens the records of a split; its files are indexed if they were not before.

    Args:
        where: what messages call them.
        instructions: which examples of which files.
        parse: makes an example of a record; picklable.

    Raises:
        DataError: if a file is no TFRecord file, is cut off, or has another number of records.
    """
    files = tuple(instruction.filename for instruction in instructions)
    starts = _indexed(where, files)
    parts = []
    for number, (instruction, found) in enumerate(zip(instructions, starts, strict=True)):
        records = len(found) - 1
        if records != instruction.examples_in_shard:
            raise DataError(
                f"{instruction.filename} has {records} records, and its data set says "
                f"{instruction.examples_in_shard}: copy it again"
            )
        chosen = slice(instruction.skip, instruction.skip + instruction.take)
        length = np.diff(found) - (_HEADER.size + _FOOTER.size)
        count = instruction.take
        parts.append((np.full(count, number, np.int32), found[:-1][chosen], length[chosen]))
    file, start, length = (np.concatenate(column) for column in zip(*parts, strict=True))
    return TfRecords(where, parse, files, file, start, length.astype(np.int32))


def _indexed(where: str, files: Sequence[str]) -> list[Int[np.ndarray, " ends"]]:
    """Returns the index of each file, kept from an earlier time if the files are the same."""
    states = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
    name = hashlib.sha256(repr(states).encode()).hexdigest()[:32]
    kept = cache_directory() / "tfrecord" / f"{name}.npz"
    if kept.exists():
        with np.load(kept) as arrays:
            return np.split(arrays["starts"], arrays["ends"])[:-1]
    sys.stderr.write(f"looking for the records in {len(files)} files of {where}, once\n")
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(find_records, files))
    try:
        _keep(kept, found)
    except OSError as error:
        sys.stderr.write(f"cannot keep the index in {kept}: {error}; it is made each time\n")
    return found


def _keep(path: pathlib.Path, found: Sequence[Int[np.ndarray, " ends"]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, starts=np.concatenate(found), ends=np.cumsum([len(x) for x in found]))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def find_records(path: str) -> Int[np.ndarray, " ends"]:
    """Returns where each record of a file begins, and where the last one ends, in bytes.

    The content is not read.

    Raises:
        DataError: if it is no TFRecord file, or is cut off.
    """
    size = os.stat(path).st_size
    starts = [0]
    with open(path, "rb") as file:
        while (start := starts[-1]) < size:
            length = _length(os.pread(file.fileno(), _HEADER.size, start))
            if length is None:
                raise DataError(f"{path} is no TFRecord file, or damaged: no record at {start}")
            starts.append(start + _HEADER.size + length + _FOOTER.size)
    if starts[-1] != size:
        raise DataError(
            f"{path} is cut off: it has {size} bytes, and its last record ends at {starts[-1]}"
        )
    return np.array(starts)


def frame(content: bytes) -> bytes:
    """Returns the record of a content, as it stands in a file."""
    length = struct.pack("<Q", len(content))
    return b"".join(
        (length, _FOOTER.pack(_masked(length)), content, _FOOTER.pack(_masked(content)))
    )


def _length(header: bytes) -> int | None:
    """Returns the length of a record, or None where its checksum is not right."""
    if len(header) != _HEADER.size:
        return None
    length, crc = _HEADER.unpack(header)
    return length if _masked(header[:8]) == crc else None


def _masked(data: bytes) -> int:
    """Returns the CRC-32C in the form in which TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
