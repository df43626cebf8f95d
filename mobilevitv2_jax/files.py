"""Writing files that are whole or not there, on a local disk and on an object store."""

from __future__ import annotations

import os
import pathlib

from etils import epath


def is_local(path: epath.PathLike) -> bool:
    """Returns whether a path is on a file system: one with appending, renaming and an end."""
    return "://" not in os.fspath(path)


def cache_directory() -> pathlib.Path:
    """Returns where this machine keeps what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home).expanduser() / "mobilevitv2_jax"


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns a path that does not depend on the current directory; an object store's is one."""
    return epath.Path(path).resolve() if is_local(path) else epath.Path(path)


def size_of(file: str | os.PathLike[str]) -> int:
    """Returns the bytes of a local file; 0 if it is not there."""
    try:
        return os.stat(file).st_size
    except OSError:
        return 0


def write_whole(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file at once: whoever reads it, after a power cut too, finds all of it or none.

    An object store writes whole objects and can neither append, nor sync, nor rename at once.
    """
    target = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    if not is_local(target):
        target.write_bytes(data)
        return
    temporary = target.with_name(target.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)


def files_below(directory: epath.Path) -> list[tuple[str, epath.Path]]:
    """Returns the files in a directory and below it, each with its relative path."""
    found = []
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            found += [(f"{path.name}/{name}", file) for name, file in files_below(path)]
        else:
            found.append((path.name, path))
    return found


def move(source: epath.Path, target: epath.Path) -> None:
    """Moves a directory to a place that is free; on an object store, object by object."""
    if is_local(source):
        source.rename(target)
        return
    for name, path in files_below(source):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.copy(place)
    source.rmtree()
