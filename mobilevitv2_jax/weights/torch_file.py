"""Reads .pt, .pth and .bin files of PyTorch without torch, and without executing their pickle.

Such a file is a zip archive of raw storages and one pickle, which names them. A pickle is a
program; here it is interpreted by a table of the opcodes that torch uses for dicts of tensors,
whose results are plain values and descriptions of tensors. No object of the file is made, and
nothing that it names is imported or called: a name that is not in the table is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import ml_dtypes
import numpy as np
from etils import epath

from mobilevitv2_jax.errors import WeightsError

STORAGES = {
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.ShortStorage": np.dtype(np.int16),
}
"""The types of numbers, by the names that torch gives their storages."""

WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
)
"""Where training scripts (timm, ml-cvnets) put the weights beside other things; averages first."""

_MOST_PICKLE = 64 << 20
"""Bytes of the largest pickle; that of MobileViTV2, with its optimizer's state, has 0.2 MB."""

_MOST_AXES = 64  # as in NumPy and torch

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of torch before 1.6 begins: torch's magic number, pickled."""

STRANGERS = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file: run `git lfs pull`",
    b"<": "it is a page of HTML or XML, probably an error of the server it came from",
}
"""What is often found in the place of weights, by what it begins with."""

_STRANGERS = {  # what files that are taken for torch's begin with
    _LEGACY: "it has the format of torch before 1.6. Convert it once, where torch is installed: "
    "python -c \"import torch; torch.save(torch.load('OLD', weights_only=True), 'NEW')\"",
    **STRANGERS,
    b"": "it is not a zip archive, as which torch has saved since 1.6, or it was cut short",
}

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What `zipfile`, `pickletools` and the interpreter raise where bits are wrong."""


def read(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Returns the tensors of a file of PyTorch by name, bit for bit.

    Args:
        path: a file that torch >= 1.6 wrote: a dict of tensors, or one in which one of
            `WRAPPERS` is such a dict.

    Returns:
        Arrays, which may not be written to: tensors that shared a storage still do. bfloat16 has
        the type of `ml_dtypes`.

    Raises:
        WeightsError: if the file does not exist, is damaged, of another format, or holds anything
            but numbers, texts, lists, dicts and tensors; nothing of it has been executed then.
    """
    source = epath.Path(path)
    if not source.is_file():
        raise WeightsError(f"{source} does not exist or is not a file")
    with _named(source), source.open("rb") as file:
        archive = _Archive(file)
        tensors = _find_tensors(_interpret(archive.pickle()))
        return {name: archive.array(tensor) for name, tensor in tensors.items()}


@contextlib.contextmanager
def _named(path: epath.Path) -> Iterator[None]:
    """Says which file it was that could not be read."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    except _DAMAGE as error:
        raise WeightsError(
            f"{path} cannot be read: it is damaged, or may not be read "
            f"({error or type(error).__name__})"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Where the numbers of tensors lie: an entry of the archive."""

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor's place in a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Name:
    """A global that the pickle names and that is in the table of those allowed."""

    name: str


class _Archive:
    """The zip archive. Torch compresses nothing, so that no entry is larger than the file."""

    def __init__(self, file: IO[bytes]) -> None:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            start = file.read(32)
            raise WeightsError(
                next(said for sign, said in _STRANGERS.items() if start.startswith(sign))
            )
        self._zip = zipfile.ZipFile(file)
        names = self._zip.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise WeightsError(
                f"it must hold one data.pkl, and has {len(roots)}: not a file of torch"
            )
        self._root = roots[0]
        if f"{self._root}constants.pkl" in names:
            raise WeightsError("it is a TorchScript program; save the model's state_dict instead")
        if len(set(names)) != len(names):
            raise WeightsError("two of its entries have one name")
        size = file.seek(0, 2)
        if sum(entry.file_size for entry in self._zip.infolist()) > size:
            raise WeightsError(f"its entries claim to be larger than its {size} bytes")
        if f"{self._root}byteorder" in names and self._entry("byteorder") != b"little":
            raise WeightsError("its numbers are big-endian")
        self._storages: dict[str, bytes] = {}

    def _entry(self, name: str) -> bytes:
        """Returns an entry, compared with its CRC-32."""
        entry = self._zip.getinfo(self._root + name)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise WeightsError(f"{name} is compressed, which torch never does")
        return self._zip.read(entry)

    def pickle(self) -> bytes:
        """Returns the pickle."""
        size = self._zip.getinfo(f"{self._root}data.pkl").file_size
        if size > _MOST_PICKLE:
            raise WeightsError(f"its pickle has {size} bytes; at most {_MOST_PICKLE} are read")
        return self._entry("data.pkl")

    def array(self, tensor: _Tensor) -> np.ndarray:
        """Returns a view of the tensor's storage."""
        storage, key = tensor.storage, tensor.storage.key
        if key not in self._storages:
            self._storages[key] = self._entry(f"data/{key}")
        numbers, itemsize = self._storages[key], storage.dtype.itemsize
        if len(numbers) != storage.size * itemsize:
            raise WeightsError(
                f"storage {key} has {len(numbers)} bytes, and should have {storage.size * itemsize}"
            )
        return np.ndarray(
            tensor.shape,
            storage.dtype,
            numbers,
            tensor.offset * itemsize,
            tuple(stride * itemsize for stride in tensor.strides),
        )


def _find_tensors(root: Any) -> dict[str, _Tensor]:
    """Returns the tensors of a file's one value."""
    if isinstance(root, dict):
        root = next((root[key] for key in WRAPPERS if isinstance(root.get(key), dict)), root)
    if not isinstance(root, dict) or not root:
        raise WeightsError(f"it holds no dict of tensors but {_kind(root)}")
    for name, value in root.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise WeightsError(
                f"it holds {_kind(value)} under {name!r}, and should hold tensors alone, or a dict "
                f"of them under one of {', '.join(WRAPPERS)}"
            )
    return root


def _kind(value: Any) -> str:
    known = {_Tensor: "a tensor", dict: "a dict", _Name: "a class"}
    return known.get(type(value), f"a value of type {type(value).__name__}")


# ---- The pickle ------------------------------------------------------------------------------


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _ordered_dict(*items: Any) -> dict:
    if items:
        raise WeightsError("an OrderedDict is made in a way that torch does not use")
    return {}


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, *rest: Any
) -> _Tensor:
    """Describes a tensor, if it lies within its storage and has no more elements."""
    whole = isinstance(storage, _Storage) and isinstance(shape, tuple)
    if not whole or not isinstance(strides, tuple) or len(shape) != len(strides):
        raise WeightsError("a tensor is described in a way that torch does not use")
    if len(shape) > _MOST_AXES or not all(map(_is_count, (offset, *shape, *strides))):
        raise WeightsError("a tensor has an offset, a size or a stride that is not a count")
    elements = math.prod(shape)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # More elements than the storage has would be repetitions: a small file could ask for any
    # amount of memory.
    if elements and (offset + last >= storage.size or elements > storage.size):
        raise WeightsError(f"a tensor of shape {list(shape)} exceeds its storage {storage.key}")
    return _Tensor(storage, offset if elements else 0, shape, strides)


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise WeightsError("a parameter is not a tensor")
    return tensor


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _tensor,
}
"""What a pickle may call, and what happens instead."""


class _Machine:
    """The stack, its marks and the memo of an unpickler; a method for each kind of opcode."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        """Returns what stands above the last mark, and takes it off with the mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise WeightsError("its pickle takes more from the stack than there is")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise WeightsError("its pickle appends to what is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise WeightsError("its pickle sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise WeightsError(f"a dict has {_kind(key)} as a key")
            self.stack[-1][key] = value

    def find(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise WeightsError("its pickle names something by what is no text")
        name = f"{module}.{name}"
        if name not in _CALLS and name not in STORAGES:
            raise WeightsError(
                f"it asks for {name[:100]}, which could execute code, so nothing was read. Save "
                "the state_dict of the model alone, as torch.load(…, weights_only=True) wants it"
            )
        self.stack.append(_Name(name))

    def storage(self, _: Any) -> None:
        kind, name, key, _device, size = self.pop(1)[0]
        known = isinstance(name, _Name) and name.name in STORAGES and kind == "storage"
        # The key becomes a part of the name of an entry: digits, and no path.
        if not known or not (isinstance(key, str) and key.isascii() and key.isdigit()):
            raise WeightsError("a storage is described in a way that torch does not use")
        if not _is_count(size):
            raise WeightsError(f"storage {key} has a size that is not a count")
        self.stack.append(_Storage(key, STORAGES[name.name], size))

    def call(self, _: Any) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, _Name) or function.name not in _CALLS:
            raise WeightsError(f"its pickle calls {_kind(function)}")
        self.stack.append(_CALLS[function.name](*arguments))

    def build(self, _: Any) -> None:
        # The attributes of a state_dict: `_metadata`, with the version of each module.
        owner, _attributes = self.pop(2)
        if type(owner) is not dict:
            raise WeightsError(f"its pickle sets attributes of {_kind(owner)}")
        self.stack.append(owner)


def _value(m: _Machine, value: Any) -> None:
    m.push(value)


_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE"), _value
    ),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE8"), _value),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), lambda m, index: m.put(index)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, index: m.push(m.memo[index])),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
    "TUPLE": lambda m, _: m.push(tuple(m.to_mark())),
    "MARK": _Machine.mark,
    "APPEND": lambda m, _: m.extend(m.pop(1)),
    "APPENDS": lambda m, _: m.extend(m.to_mark()),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.to_mark()),
    "GLOBAL": lambda m, words: m.find(*words.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.find(*m.pop(2)),
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}


def _interpret(program: bytes) -> Any:
    """Returns the value that a pickle describes."""
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == "STOP":
            return machine.pop(1)[0]
        if opcode.name not in _OPCODES:
            raise WeightsError(f"its pickle uses {opcode.name}, which torch does not")
        _OPCODES[opcode.name](machine, argument)
    raise WeightsError("its pickle has no end")
