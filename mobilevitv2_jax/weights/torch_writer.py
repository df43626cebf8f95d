"""Writes .pt files that PyTorch reads (`torch.load(…, weights_only=True)`), without torch."""

from __future__ import annotations

import io
import itertools
import struct
import zipfile
from collections.abc import Iterable, Mapping

import numpy as np
from etils import epath

from mobilevitv2_jax.files import write_whole
from mobilevitv2_jax.weights.torch_file import STORAGES

_NAMES = {dtype: name.removeprefix("torch.") for name, dtype in STORAGES.items()}

# Opcodes of pickle's protocol 2 (`pickletools`).
_PROTOCOL, _STOP, _MARK, _TUPLE = b"\x80\x02", b".", b"(", b"t"
_CALL, _SET_ITEMS, _PERSISTENT, _FALSE = b"R", b"u", b"Q", b"\x89"
_ORDERED_DICT = b"ccollections\nOrderedDict\n)" + _CALL


def write(path: epath.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state_dict: the tensors by name, in their order.

    Raises:
        KeyError: for an array of a type that torch has no storage for.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in _entries(tensors):
            # Of a fixed date, so that the same tensors give the same file.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    write_whole(path, buffer.getvalue())


def _entries(tensors: Mapping[str, np.ndarray]) -> Iterable[tuple[str, bytes]]:
    yield "data.pkl", _pickle(tensors)
    yield "byteorder", b"little"
    for key, array in enumerate(tensors.values()):
        yield f"data/{key}", array.astype(array.dtype.newbyteorder("<"), order="C").tobytes()
    yield "version", b"3\n"


def _pickle(tensors: Mapping[str, np.ndarray]) -> bytes:
    items = (_text(name) + _tensor(key, array) for key, (name, array) in enumerate(tensors.items()))
    return b"".join([_PROTOCOL, _ORDERED_DICT, _MARK, *items, _SET_ITEMS, _STOP])


def _tensor(key: int, array: np.ndarray) -> bytes:
    """Returns the call that makes a contiguous tensor of a storage of its own."""
    storage = [
        _text("storage"),
        f"ctorch\n{_NAMES[array.dtype]}\n".encode(),
        *map(_text, (str(key), "cpu")),
        _integer(array.size),
    ]
    strides = itertools.accumulate(array.shape[:0:-1], int.__mul__, initial=1)
    arguments = [
        _tuple(storage) + _PERSISTENT,
        _integer(0),
        _tuple(map(_integer, array.shape)),
        _tuple(map(_integer, reversed(list(strides)[: array.ndim]))),
        _FALSE,
        _ORDERED_DICT,
    ]
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + _tuple(arguments) + _CALL


def _tuple(items: Iterable[bytes]) -> bytes:
    return _MARK + b"".join(items) + _TUPLE


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)
