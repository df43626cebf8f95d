"""Files of named tensors: safetensors, whole or in shards, and PyTorch's."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.files import write_whole
from mobilevitv2_jax.weights import torch_file

Tensors = dict[str, np.ndarray]

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Of the files that `read` takes; all but the first are PyTorch's."""

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""How Hugging Face and timm call a file that holds all weights; shards have a list beside them."""

_INDEX = ".index.json"

USUAL = tuple(name + end for name in WHOLE for end in ("", _INDEX))
"""Where the weights of a directory are looked for, the first that is there."""

_DIGEST = "mobilevitv2_jax.sha256"
"""Key in the metadata of the files we write: safetensors itself does not notice a flipped bit."""

_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def find(directory: epath.Path) -> epath.Path:
    """Returns the file, or the list of shards, that holds the weights of a directory.

    Raises:
        WeightsError: if there is none, or there are several and none has a usual name.
    """
    for name in USUAL:
        if (directory / name).exists():
            return directory / name
    found = sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES)
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found)
    raise WeightsError(
        f"{directory} holds {f'{names}: name one of these files' if found else 'no weights'}; "
        f"there should be one file {' or '.join(WHOLE)}"
    )


def read(path: epath.Path) -> Tensors:
    """Reads a file of tensors, or all shards of a list; every array by its key.

    Raises:
        WeightsError: if a file is missing, damaged, or of a format that is not read.
    """
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in SUFFIXES:
        return torch_file.read(path)
    raise WeightsError(f"{path} must end in {', '.join(SUFFIXES)} to be read as weights")


def write_safetensors(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors with their checksum."""
    # transformers asks for "format", and refuses a file without it.
    metadata = {"format": "pt", _DIGEST: _digest(tensors)}
    write_whole(path, safetensors.numpy.save(dict(tensors), metadata))


def _read_safetensors(path: epath.Path) -> Tensors:
    if not path.exists():
        raise WeightsError(f"{path} does not exist")
    data = path.read_bytes()
    try:
        # It rejects headers that do not describe exactly what follows them, before allocating.
        entries = safetensors.deserialize(data)
    except (safetensors.SafetensorError, ValueError) as error:
        for sign, said in torch_file.STRANGERS.items():
            if data.startswith(sign):
                raise WeightsError(f"{path} cannot be read: {said}") from None
        raise WeightsError(f"{path} is damaged, or no safetensors file: {error}") from None
    tensors = {}
    for key, entry in entries:
        if entry["dtype"] not in _TYPES:
            raise WeightsError(
                f"{path}: {key} has the type {entry['dtype']}, which is not read; "
                f"these are: {', '.join(_TYPES)}"
            )
        array = np.frombuffer(entry["data"], _TYPES[entry["dtype"]])
        tensors[key] = array.reshape(entry["shape"])
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    digest = header.get("__metadata__", {}).get(_DIGEST)
    if digest not in (None, _digest(tensors)):
        raise WeightsError(
            f"{path} is damaged: its tensors have another checksum than when they were written"
        )
    return tensors


def _read_shards(path: epath.Path) -> Tensors:
    try:
        places = json.loads(path.read_text())["weight_map"]
        shards = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f"{path} is no list of shards: it has no weight_map") from None
    tensors: Tensors = {}
    for shard in shards:
        if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard:
            raise WeightsError(f"{path} names the shard {shard!r}: must be a file beside it")
        if shard.endswith(_INDEX):
            raise WeightsError(f"{path} names the shard {shard}, which is a list of shards itself")
        if not (path.parent / shard).exists():
            raise WeightsError(f"{path} names the shard {shard}, which is not there")
        part = read(path.parent / shard)
        if part.keys() & tensors.keys():
            raise WeightsError(f"{shard} holds {min(part.keys() & tensors.keys())} once more")
        tensors |= part
    if tensors.keys() != places.keys():
        wrong = sorted(tensors.keys() ^ places.keys())
        raise WeightsError(
            f"{path} and its shards differ in {len(wrong)} tensors, one of them {wrong[0]}"
        )
    return tensors


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        array = tensors[key]
        digest.update(f"{key} {array.dtype} {list(array.shape)} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
