"""Files that are whole or not there."""

import os

import pytest
from etils import epath
from object_store import ObjectStore

from mobilevitv2_jax.files import is_local, write_whole


def test_a_file_that_cannot_be_written_whole_is_left_as_it_was(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("sync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("name"), replace(*paths)))
    write_whole(tmp_path / "file", "text")
    assert events == ["sync", "name"]


def test_bytes_are_written_as_they_are(tmp_path):
    write_whole(tmp_path / "file", b"\r\n\xff")
    assert (tmp_path / "file").read_bytes() == b"\r\n\xff"


@pytest.mark.parametrize("content", ["other", b"\xff"])
def test_an_object_is_written_without_appending_or_renaming(content, object_store):
    assert not is_local(ObjectStore.ROOT)
    path = epath.Path(ObjectStore.ROOT) / "directory" / "file"
    write_whole(path, "text")
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert ObjectStore.names() == ["directory/file"]
