"""The reader of PyTorch's files: what it reads, and what it refuses without executing anything."""

import ast
import encodings.raw_unicode_escape  # noqa: F401  # loaded by pickletools where a text needs it
import inspect
import sys

import ml_dtypes
import numpy as np
import pytest
import torch_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_files import call, mapping, named, number, pickle, storage, tensor, text, write

from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.weights import torch_file

KINDS = {
    "bfloat16": "BFloat16Storage",
    "bool": "BoolStorage",
    "float16": "HalfStorage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
}
VALUES = np.arange(6, dtype=np.float32)
STORE = {"0": VALUES.tobytes()}
WHOLE = tensor(storage("0", 6), (2, 3), (3, 1))


def refusal(path):
    """Returns what the reader says against a file."""
    with pytest.raises(WeightsError) as caught:
        torch_file.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_every_type_of_number_is_read_bit_for_bit(tmp_path):
    random = np.random.RandomState(0)
    arrays = {
        name: random.randint(0, 2, (2, 3, 1, 5)).astype(
            ml_dtypes.bfloat16 if name == "bfloat16" else name
        )
        for name in KINDS
    }
    arrays |= {"scalar": np.array(7, np.int64), "empty": np.zeros((0, 4), np.float32)}
    read = torch_file.read(torch_files.write_state_dict(tmp_path / "all.pt", arrays, KINDS))
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()
        assert not read[name].flags.writeable


def test_offsets_strides_and_shared_storages_are_followed(tmp_path):
    store = storage("0", 6)
    tensors = {
        "tied": WHOLE,
        "transposed": tensor(store, (3, 2), (1, 3)),
        "column": tensor(store, (2,), (3,), offset=1),
        "parameter": call("torch._utils", "_rebuild_parameter", WHOLE, b"\x88", b"}"),
    }
    read = torch_file.read(write(tmp_path / "views.pt", mapping(tensors), STORE))
    whole = VALUES.reshape(2, 3)
    np.testing.assert_array_equal(read["transposed"], whole.T)
    np.testing.assert_array_equal(read["column"], whole[:, 1])
    np.testing.assert_array_equal(read["parameter"], whole)
    assert np.shares_memory(read["tied"], read["transposed"])


@pytest.mark.parametrize("wrapper", torch_file.WRAPPERS)
def test_the_weights_are_found_beside_other_things(tmp_path, wrapper):
    optimizer = mapping({"state": b"]", "lr": b"G?\xb9\x99\x99\x99\x99\x99\x9a"})
    value = mapping({"epoch": number(3), wrapper: mapping({"w": WHOLE}), "optimizer": optimizer})
    read = torch_file.read(write(tmp_path / "run.pt", value, STORE))
    assert list(read) == ["w"]


def test_averaged_weights_are_taken_before_raw_ones(tmp_path):
    averaged = tensor(storage("1", 6), (6,), (1,))
    value = mapping(
        {"state_dict": mapping({"w": WHOLE}), "state_dict_ema": mapping({"w": averaged})}
    )
    path = write(tmp_path / "run.pt", value, {**STORE, "1": (VALUES + 1).tobytes()})
    np.testing.assert_array_equal(torch_file.read(path)["w"], VALUES + 1)


PAYLOADS = {
    "os.system": call("os", "system", text("touch executed")),
    "posix.system": call("posix", "system", text("touch executed")),
    "builtins.eval": call("builtins", "eval", text("open('executed', 'w')")),
    "builtins.getattr": call("builtins", "getattr", WHOLE, text("storage")),
    "torch.load": call("torch", "load", text("executed")),
    "subprocess.run": text("subprocess") + text("run") + b"\x93" + text("touch") + b"\x85R",
    "torch.nn.modules.conv.Conv2d": named("torch.nn.modules.conv", "Conv2d") + b")\x81}b",
    "numpy.core.multiarray.scalar": call("numpy.core.multiarray", "scalar"),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_what_a_pickle_wants_to_call_is_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    value = mapping({"w": WHOLE, "payload": PAYLOADS[name]})
    assert name in refusal(write(tmp_path / "bad.pt", value, STORE))
    assert not (tmp_path / "executed").exists()


STORAGE_CLASS = named("torch", "FloatStorage")
ODD = {
    "calls a class": STORAGE_CLASS + b")R",
    "uses INST": b"(ios\nsystem\n",
    "uses OBJ": b"(" + STORAGE_CLASS + b"o",
    "uses NEWOBJ": STORAGE_CLASS + b")\x81",
    "uses EXT1": b"\x82\x01",
    "uses PERSID": b"P0\n",
    "sets attributes of a tensor": WHOLE + b"}b",
    "sets items of what is no dict": b"](" + text("a") + number(1) + b"u",
    "appends to what is no list": b"}(" + number(1) + b"e",
    "has a tensor as a key": b"}(" + WHOLE + number(1) + b"u",
    "OrderedDict is made": call("collections", "OrderedDict", b"]"),
    "takes more from the stack": b"(\x87",
    "damaged": b"h\x07",  # what was never memoized
    "exceeds its storage": tensor(storage("0", 6), (2, 4), (4, 1)),
    "exceeds its storage 0": tensor(storage("0", 6), (6,), (1,), offset=1),
    "[1000, 1000] exceeds": tensor(storage("0", 6), (1000, 1000), (0, 0)),
    "not a count": tensor(storage("0", 6), (2,), (-1,), offset=3),
    "size that is not a count": tensor(storage("0", -1), (), ()),
    "has 24 bytes, and should have 28": tensor(storage("0", 7), (2, 3), (3, 1)),
    "has 24 bytes, and should have 48": tensor(storage("0", 6, "DoubleStorage"), (2, 3), (3, 1)),
    "no item named 'archive/data/1'": tensor(storage("1", 6), (2, 3), (3, 1)),
    "storage is described": tensor(storage("../data.pkl", 6), (2, 3), (3, 1)),
    "asks for os.FloatStorage": tensor(storage("0", 6, module="os"), (2, 3), (3, 1)),
    "asks for torch.QInt8Storage": tensor(storage("0", 6, "QInt8Storage"), (2, 3), (3, 1)),
    "tensor is described": tensor(text("0"), (2, 3), (3, 1)),
    "parameter is not": call("torch._utils", "_rebuild_parameter", text("0"), b"\x88", b"}"),
    "of type int under 'odd'": number(1),
    "a dict under 'odd'": mapping({"deeper": WHOLE}),
}


@pytest.mark.parametrize("reason", ODD)
def test_what_torch_does_not_write_is_refused_with_its_reason(tmp_path, reason):
    assert reason in refusal(
        write(tmp_path / "odd.pt", mapping({"w": WHOLE, "odd": ODD[reason]}), STORE)
    )


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (b"]", "a value of type list"),
        (WHOLE, "a tensor"),
        (b"}", "a dict"),
        (STORAGE_CLASS, "a class"),
    ],
)
def test_a_file_without_a_dict_of_tensors_is_refused(tmp_path, value, what):
    said = refusal(write(tmp_path / "x.pt", value, STORE))
    assert said.endswith(f"holds no dict of tensors but {what}")


def test_files_of_other_formats_are_named(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    for start, reason in (
        (torch_file._LEGACY, "torch.save(torch.load('OLD', weights_only=True), 'NEW')"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html>", "page of HTML"),
        (b"", "not a zip archive"),
        (b"\x93NUMPY", "not a zip archive"),
    ):
        path.write_bytes(start)
        assert reason in refusal(path)
    assert "does not exist" in refusal(tmp_path / "nowhere.bin")
    assert "not a file" in refusal(tmp_path)


def test_archives_of_another_kind_are_refused(tmp_path):
    path, value = tmp_path / "x.pt", mapping({"w": WHOLE})
    write(path, value, STORE, extra=[("archive/constants.pkl", b"")])
    assert "TorchScript" in refusal(path)
    write(path, value, STORE, extra=[("other/data.pkl", b"")])
    assert "has 2" in refusal(path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        write(path, value, STORE, extra=[("archive/data/0", b"")])
    assert "one name" in refusal(path)


def test_big_endian_numbers_are_refused(tmp_path):
    path = write(tmp_path / "x.pt", mapping({"w": WHOLE}), STORE, byteorder=b"big")
    assert "big-endian" in refusal(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    zeros = bytes(20_000_000)
    value = mapping({"w": tensor(storage("0", len(zeros) // 4), (len(zeros) // 4,), (1,))})
    path = write(tmp_path / "bomb.pt", value, {"0": zeros}, compression=8)
    assert path.stat().st_size < 100_000
    assert "claim to be larger" in refusal(path)
    path = write(tmp_path / "small.pt", mapping({"w": WHOLE}), STORE, compression=8)
    assert "compressed" in refusal(path) or "claim to be larger" in refusal(path)


def test_a_pickle_that_is_far_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "_MOST_PICKLE", 100)
    assert "at most 100 are read" in refusal(write(tmp_path / "x.pt", mapping({"w": WHOLE}), STORE))


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    whole = write(tmp_path / "whole.pt", mapping({"w": WHOLE}), STORE).read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        refusal(path)


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    whole = write(tmp_path / "whole.pt", mapping({"w": WHOLE}), STORE).read_bytes()
    path, refused = tmp_path / "flipped.pt", 0
    for position in range(0, len(whole), 2):
        data = bytearray(whole)
        data[position] ^= 1 << position // 2 % 8
        path.write_bytes(data)
        try:
            read = torch_file.read(path)
        except WeightsError:
            refused += 1
        else:  # a date, an attribute, or the name or version of an entry that is not needed
            np.testing.assert_array_equal(read["w"], VALUES.reshape(2, 3))
    assert refused > len(whole) / 4


# ---- Nothing is executed -------------------------------------------------------------------

FORBIDDEN = ("import", "exec", "compile", "pickle.find_class", "os.", "subprocess.", "ctypes.")
WATCH = {"on": False, "seen": []}


def _audit(event, arguments):
    writes = event == "open" and arguments[1] not in ("r", "rb", None)
    if WATCH["on"] and (event.startswith(FORBIDDEN) or writes):
        WATCH["seen"].append((event, arguments))


@pytest.fixture(scope="module")
def watch(tmp_path_factory):
    """Notes imports, executions, system calls and writing, while WATCH["on"]."""
    torch_file.read(write(tmp_path_factory.mktemp("t") / "a.pt", mapping({"w": WHOLE}), STORE))
    sys.addaudithook(_audit)  # for good, but idle outside of these tests
    return WATCH


fragments = st.one_of(
    st.sampled_from([*PAYLOADS.values(), *ODD.values(), WHOLE, STORAGE_CLASS]),
    st.sampled_from([bytes([code]) for code in range(256)]),
    st.binary(max_size=12),
    st.text(max_size=8).map(text),
    st.integers(-10, 10).map(number),
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(fragments, max_size=30).map(b"".join), st.booleans())
def test_whatever_a_pickle_holds_nothing_is_executed(tmp_path, watch, body, inside):
    value = mapping({"w": WHOLE, "x": body}) if inside else body
    path = write(tmp_path / "fuzz.pt", value, STORE)
    watch["seen"].clear()
    watch["on"] = True
    try:
        torch_file.read(path)
    except WeightsError:
        pass
    finally:
        watch["on"] = False
    assert watch["seen"] == []


def test_the_watch_sees_what_a_real_unpickler_does(watch):
    import pickle as real

    watch["seen"].clear()
    watch["on"] = True
    real.loads(pickle(call("posixpath", "join", text("a"), text("b"))))
    watch["on"] = False
    assert "pickle.find_class" in [event for event, _ in watch["seen"]]


def test_the_reader_has_no_means_to_execute_anything():
    tree = ast.parse(inspect.getsource(torch_file))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not used & {"pickle", "importlib", "eval", "exec", "getattr", "setattr", "__import__"}
