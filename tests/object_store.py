"""An object store in memory, behind the address that a real one would have.

Python reaches it through fsspec; TensorStore, which writes the arrays of checkpoints, over HTTP.
"""

import functools
import http.server
import json
import sys
import threading
import types
import urllib.parse
import zlib

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class ObjectStore(MemoryFileSystem):
    """Whole objects are written and read; nothing is appended to, renamed or moved."""

    ROOT = "gs://bucket"

    protocol = ("gs", "gcs")
    store: dict = {}
    pseudo_dirs: list = [""]

    @classmethod
    def _strip_protocol(cls, path):
        text = "/" + str(path).removeprefix("gs://").removeprefix("gcs://").strip("/")
        return "" if text == "/" else text

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


class Handler(http.server.BaseHTTPRequestHandler):
    """As much of the JSON API of Cloud Storage as TensorStore asks for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name, query = self._parse()
        if name is None:
            first, end = query["startOffset"], query.get("endOffset") or "\U0010ffff"
            found = [name for name in ObjectStore.names() if first <= name < end]
            items = [self._metadata(name) for name in found]
            return self._answer(200, json.dumps({"items": items}).encode())
        data = self._read(name)
        if data is None:
            return self._answer(404)
        headers = {"x-goog-generation": self._generation(name)}
        if "Range" not in self.headers:
            return self._answer(200, data, headers)
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last or len(data)) + 1]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        return self._answer(206, part, headers)

    def do_POST(self):
        _, query = self._parse()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        name = query["name"]
        if query.get("ifGenerationMatch", self._generation(name)) != self._generation(name):
            return self._answer(412)
        ObjectStore().pipe_file(f"/bucket/{name}", data)
        return self._answer(200, json.dumps(self._metadata(name)).encode())

    def do_DELETE(self):
        name, _ = self._parse()
        found = ObjectStore.store.pop(f"/bucket/{name}", None)
        return self._answer(204 if found else 404)

    def log_message(self, *_):
        pass

    def _parse(self):
        address = urllib.parse.urlsplit(self.path)
        name = address.path.partition("/b/bucket/o")[2].removeprefix("/")
        query = dict(urllib.parse.parse_qsl(address.query))
        return urllib.parse.unquote(name) or None, query

    def _read(self, name):
        file = ObjectStore.store.get(f"/bucket/{name}")
        return None if file is None else file.getvalue()

    def _generation(self, name):
        data = self._read(name)
        return "0" if data is None else str(zlib.crc32(data) + 1)

    def _metadata(self, name):
        size = len(self._read(name))
        generation = self._generation(name)
        return {"name": name, "bucket": "bucket", "size": str(size), "generation": generation}

    def _answer(self, status, data=b"", headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)


@functools.cache
def serve():
    """Serves the store as long as this process lives; returns the address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def install(monkeypatch):
    """Puts an empty store behind `gs://`."""
    monkeypatch.setattr(ObjectStore, "store", {})
    monkeypatch.setattr(ObjectStore, "pseudo_dirs", [""])
    for protocol in ObjectStore.protocol:
        fsspec.register_implementation(protocol, ObjectStore, clobber=True)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", serve())
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    # Orbax asks Google's library, which comes with gcsfs, whether the bucket has real directories.
    bucket = types.SimpleNamespace(hierarchical_namespace_enabled=False)
    client = types.SimpleNamespace(get_bucket=lambda name: bucket)
    cloud = types.ModuleType("google.cloud")
    cloud.storage = types.SimpleNamespace(Client=lambda: client)
    monkeypatch.setitem(sys.modules, "google.cloud", cloud)
