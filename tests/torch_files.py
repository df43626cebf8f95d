"""Writes files as torch.save does, and others as it never would: a zip archive and a pickle.

The opcodes are put together by hand, so that a file may hold anything.
"""

import struct
import zipfile


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def call(module, name, *arguments):
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def mapping(items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(key, size, kind="FloatStorage", module="torch"):
    return (
        b"("
        + text("storage")
        + named(module, kind)
        + text(key)
        + text("cpu")
        + number(size)
        + b"tQ"
    )


def tensor(store, shape, strides, offset=0):
    hooks = call("collections", "OrderedDict")
    form = (number(offset), numbers(shape), numbers(strides))
    return call("torch._utils", "_rebuild_tensor_v2", store, *form, b"\x89", hooks)


def pickle(value):
    return b"\x80\x02" + value + b"."


def write(path, value, storages, *, compression=zipfile.ZIP_STORED, byteorder=b"little", extra=()):
    """Writes an archive with the pickle of `value` and the bytes of each storage."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle(value))
        archive.writestr("archive/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
        for name, data in extra:
            archive.writestr(name, data)
    return path


def contiguous(shape):
    """Returns the strides of a tensor whose elements lie in order, in elements."""
    strides = [1]
    for side in reversed(shape[1:]):
        strides.append(strides[-1] * side)
    return strides[::-1] if shape else []


def write_state_dict(path, arrays, kinds):
    """Writes NumPy arrays as torch.save writes a state_dict.

    Args:
        path: the file.
        arrays: by name.
        kinds: torch's name of the storage by the name of a NumPy type, such as float32.
    """
    tensors, storages = {}, {}
    for index, (name, array) in enumerate(arrays.items()):
        store = storage(str(index), array.size, kinds[array.dtype.name])
        tensors[name] = tensor(store, array.shape, contiguous(array.shape))
        storages[str(index)] = array.tobytes()
    return write(path, mapping(tensors), storages)
