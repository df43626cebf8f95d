"""Files in tar archives, found once and then read where they are: nothing is unpacked."""

from __future__ import annotations

import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from mobilevitv2_jax.errors import DataError


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: as it stands in the archive, without any folder.
        offset: where its content begins, in bytes from the beginning of the outermost archive.
        size: length of its content in bytes.
    """

    name: str
    offset: int
    size: int


def members(archive: str, inside: Member | None = None) -> Iterator[Member]:
    """Returns the files in an archive, in its order.

    Args:
        archive: a tar file that is not compressed.
        inside: one of its members that is itself a tar file: return the files in that one.

    Raises:
        DataError: if it is no such archive, is cut off, or has a member that is not a plain file
            with a plain name: a link, a folder, or a path that leads elsewhere.
    """
    path = pathlib.Path(archive)
    if not path.is_file():
        raise DataError(f"there is no file {archive}")
    where = f"{inside.name} in {archive}" if inside else archive
    end = inside.offset + inside.size if inside else path.stat().st_size
    with path.open("rb") as file:
        file.seek(inside.offset if inside else 0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (info := tar.next()) is not None and info.offset < end:
                    _check_name(info, where)
                    if info.offset_data + info.size > end:
                        raise tarfile.ReadError(f"{info.name} is not whole")
                    yield Member(info.name, info.offset_data, info.size)
                file.seek(tar.offset)
                # For tarfile a damaged header is the end, too.
                if file.read(min(tarfile.BLOCKSIZE, max(end - tar.offset, 0))).strip(b"\0"):
                    raise tarfile.ReadError(f"no header at byte {tar.offset}")
        except tarfile.TarError as error:
            raise DataError(
                f"{where} is not a whole tar archive ({error}): if it is compressed, decompress "
                "it; if a download was cut off, repeat it"
            ) from error


def read(archive: str, offset: int, size: int) -> bytes:
    """Returns the content of a member."""
    with open(archive, "rb") as file:
        return os.pread(file.fileno(), size, offset)


def _check_name(info: tarfile.TarInfo, where: str) -> None:
    plain = info.isreg() and not info.issparse()
    if not plain or "/" in info.name or "\\" in info.name or info.name in ("", ".", ".."):
        raise DataError(
            f"{where} has the member {info.name!r}, which is not a plain file with a plain name: "
            "this is not the original archive"
        )
