"""An object store in memory, behind the address that a real one would have."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class ObjectStore(MemoryFileSystem):
    """Whole objects are written and read; nothing is appended to, renamed or moved."""

    ROOT = "s3://bucket"

    protocol = "s3"
    store: dict = {}
    pseudo_dirs: list = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("s3:/"))

    @classmethod
    def names(cls):
        """Returns the names of all objects, without the bucket's."""
        return sorted(name.removeprefix("/bucket/") for name in cls.store)

    def _open(self, path, mode="rb", **options):
        if mode not in ("rb", "wb", "xb"):
            raise NotImplementedError(f"an object store cannot open in mode {mode}")
        return super()._open(path, mode, **options)

    def mv(self, *arguments, **options):
        """Refuses."""
        raise NotImplementedError("an object store cannot rename")

    rename = move = mv


def install(monkeypatch):
    """Puts an empty store behind `s3://`."""
    monkeypatch.setattr(ObjectStore, "store", {})
    monkeypatch.setattr(ObjectStore, "pseudo_dirs", [""])
    fsspec.register_implementation("s3", ObjectStore, clobber=True)
