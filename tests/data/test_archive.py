"""Finding files in tar archives."""

import gzip
import io
import tarfile

import pytest
from small_images import tar

from mobilevitv2_jax.data import archive
from mobilevitv2_jax.errors import DataError

FILES = {"a.JPEG": b"x" * 700, "b.JPEG": b"", "c.JPEG": b"z" * 512}


def write(path, data):
    path.write_bytes(data)
    return str(path)


def contents(path, inside=None):
    return {
        member.name: archive.read(path, member.offset, member.size)
        for member in archive.members(path, inside)
    }


def test_members_are_read_where_they_are(tmp_path):
    assert contents(write(tmp_path / "a.tar", tar(FILES))) == FILES


def test_members_of_an_archive_in_an_archive_are_read_where_they_are(tmp_path):
    path = write(tmp_path / "a.tar", tar({"1.tar": tar(FILES), "2.tar": tar({"d": b"d"})}))
    first, second = archive.members(path)
    assert contents(path, first) == FILES
    assert contents(path, second) == {"d": b"d"}


def test_an_inner_archive_without_its_end_blocks_does_not_run_into_the_next(tmp_path):
    data = tar({"d": b"d"})[:1024]  # a header and a block: no end, no padding
    path = write(tmp_path / "a.tar", tar({"1.tar": data, "2.tar": tar(FILES)}))
    first, _ = archive.members(path)
    assert contents(path, first) == {"d": b"d"}


def entry(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "info",
    [
        entry("../escape.JPEG"),
        entry("/etc/passwd"),
        entry("folder/a.JPEG"),
        entry("..\\escape.JPEG"),
        entry(".."),
        entry("folder", tarfile.DIRTYPE),
        entry("a.JPEG", tarfile.SYMTYPE, "/etc/passwd"),
        entry("a.JPEG", tarfile.LNKTYPE, "../b"),
        entry("a.JPEG", tarfile.CHRTYPE),
        entry("a.JPEG", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_member_that_leads_elsewhere_is_refused(tmp_path, info, nested):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(info)
    data = buffer.getvalue()
    path = write(tmp_path / "a.tar", tar({"1.tar": data}) if nested else data)
    inside = next(archive.members(path)) if nested else None
    with pytest.raises(DataError, match="which is not a plain file with a plain name"):
        list(archive.members(path, inside))


@pytest.mark.parametrize("cut", [100, 512, 900, 1100, 1600, 2000])
def test_an_archive_that_is_cut_off_within_a_member_is_refused(tmp_path, cut):
    # Header, 700 bytes in two blocks, header, header, one block: 3072 bytes, then the end.
    path = write(tmp_path / "a.tar", tar({"a": b"x" * 700, "c": b"z" * 512})[:cut])
    with pytest.raises(DataError, match="is not a whole tar archive"):
        list(archive.members(path))


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    data = bytearray(tar(FILES))
    data[1536 + 10] ^= 1  # the name of the second member: its header's checksum is wrong now
    with pytest.raises(DataError, match=r"is not a whole tar archive .no header at byte 1536"):
        list(archive.members(write(tmp_path / "a.tar", bytes(data))))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("data", [b"no archive" * 100, gzip.compress(tar(FILES))])
def test_what_is_no_archive_is_refused(tmp_path, data, nested):
    path = write(tmp_path / "a.tar", tar({"1.tar": data}) if nested else data)
    inside = next(archive.members(path)) if nested else None
    with pytest.raises(DataError, match="not a whole tar archive .*compressed, decompress it"):
        list(archive.members(path, inside))


def test_a_file_that_is_not_there_is_told():
    with pytest.raises(DataError, match="there is no file /no/such.tar"):
        list(archive.members("/no/such.tar"))
