"""Images in folders of classes and in lists, read and prepared."""

import json
import pickle

import numpy as np
import pytest
from small_images import encoded, make_folders

from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.data import array_record
from mobilevitv2_jax.data.augment import Evaluate
from mobilevitv2_jax.data.loader import describe, evaluation_batches
from mobilevitv2_jax.data.sources import load_source
from mobilevitv2_jax.errors import DataError


def load(directory):
    """Returns both splits."""
    return [load_source("folder", split, str(directory)) for split in ("train", "val")]


def names(source):
    return [str(source.path(index).relative_to(source.root)) for index in range(len(source))]


def test_folders_of_train_and_val_are_read_as_they_are(tmp_path):
    counts = {"train/dog": 3, "train/cat": 2, "val/cat": 1}
    make_folders(tmp_path, counts)
    train, val = load(tmp_path)
    assert train.class_names == val.class_names == ("cat", "dog")
    dogs = [f"dog/{number}.jpg" for number in range(3)]
    assert names(train) == ["cat/0.jpg", "cat/1.jpg", *dogs] and names(val) == ["cat/0.jpg"]
    assert train.root == str(tmp_path / "train") and val.root == str(tmp_path / "val")
    assert train.labels.tolist() == [0, 0, 1, 1, 1]
    assert train[2]["image"] == encoded(0) and train[2]["label"] == 1
    assert train[2]["label"].dtype == np.int32


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_without_val_a_fifth_of_every_class_is_held_out(tmp_path, prefix):
    make_folders(tmp_path, {f"{prefix}a": 10, f"{prefix}b": 5, f"{prefix}c": 2})
    train, val = load(tmp_path)
    assert np.bincount(train.labels).tolist() == [8, 4, 1]
    assert np.bincount(val.labels).tolist() == [2, 1, 1]
    assert not set(names(train)) & set(names(val))
    assert names(load(tmp_path)[1]) == names(val)


def test_what_is_held_out_stays_so_when_other_classes_come(tmp_path):
    make_folders(tmp_path, {"b": 10})
    before = names(load(tmp_path)[1])
    make_folders(tmp_path, {"a": 10})
    assert [name for name in names(load(tmp_path)[1]) if name.startswith("b/")] == before


def test_the_fingerprint_follows_the_files(tmp_path):
    make_folders(tmp_path / "pets", {"a": 4, "b": 4})
    before = load(tmp_path / "pets")[0].fingerprint
    assert before.startswith("pets/train/6-")
    assert load(tmp_path / "pets")[0].fingerprint == before
    (tmp_path / "pets/a/0.jpg").rename(tmp_path / "pets/a/new.jpg")
    assert load(tmp_path / "pets")[0].fingerprint != before


def test_images_are_found_in_folders_below_and_other_files_are_not(tmp_path):
    make_folders(tmp_path, {"a/x": 2, "a/y": 2, ".cache/z": 2, "b": 2})
    for name in ("a/notes.txt", "a/.hidden.jpg", "top.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b/2.JPEG").write_bytes(encoded(9))
    (tmp_path / "b/3.png").write_bytes(encoded(9, ".png"))
    train, val = load(tmp_path)
    assert train.class_names == ("a", "b") and len(train) + len(val) == 8


@pytest.mark.parametrize(
    ("link", "target", "count"),
    [
        ("cat/self", ".", 4),
        ("cat/all", "..", 4),
        ("dog/small/up", "..", 4),
        ("cat/x", "../../x", 7),
    ],
)
def test_links_to_folders_are_followed_but_not_in_circles(tmp_path, link, target, count):
    make_folders(tmp_path, {"pets/cat": 2, "pets/dog/small": 2, "x": 3})
    (tmp_path / "pets" / link).symlink_to(target)
    train, val = load(tmp_path / "pets")
    assert len(train) + len(val) == count


def test_a_list_gives_paths_and_labels(tmp_path):
    make_folders(tmp_path, {"x": 3, "y": 3})
    lines = ["path,label", "x/0.jpg,cat", "x/1.jpg,cat", '"y/0.jpg",dog', "", " y/1.jpg , dog"]
    (tmp_path / "animals.csv").write_text("\n".join(lines))
    train, val = load(tmp_path / "animals.csv")
    assert train.class_names == ("cat", "dog")
    assert train.labels.tolist() == val.labels.tolist() == [0, 1]
    assert sorted(names(train) + names(val)) == ["x/0.jpg", "x/1.jpg", "y/0.jpg", "y/1.jpg"]


def test_lists_of_train_and_val_and_labels_that_are_numbers(tmp_path):
    make_folders(tmp_path, {"x": 3})
    (tmp_path / "train.csv").write_text("x/0.jpg,10\nx/1.jpg,9\n")
    (tmp_path / "val.csv").write_text("x/2.jpg,10\n")
    train, val = load(tmp_path)
    assert train.class_names == ("9", "10")
    assert train.labels.tolist() == [0, 1] and val.labels.tolist() == [1]


def test_paths_may_have_any_letters_and_a_source_is_cheap_to_send(tmp_path):
    make_folders(tmp_path, {"Kühe": 40, "Ziegen": 40})
    train, _ = load(tmp_path)
    data = pickle.dumps(train)
    assert len(data) < 3000  # 64 paths of 14 bytes
    assert pickle.loads(data)[0]["image"] == train[0]["image"]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "must have a folder of images for each class, and has no folder"),
        ({"a": 2, "b": 0}, "/b has no images .* remove it, if it is no class"),
        ({"a": 2, "b": 1}, "class 'b' has one image"),
        ({"val/a": 2}, "in val, and no train beside it"),
        ({"bus": 2, "train/steam": 2, "train/diesel": 2}, "images in bus/ beside train/"),
        ({"bus": 2, "train/a": 2, "val/a": 2}, "images in bus/ beside train/"),
        ({"train/a": 2, "val/b": 2}, "/val: 'b' is no class of .*/train, which has 1: a"),
    ],
)
def test_a_folder_that_is_not_as_it_should_be_is_refused(tmp_path, counts, message):
    make_folders(tmp_path, counts)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("path,label\n", "lists no images"),
        ("a/0.jpg\n", "list.csv:1 must be a path and a label"),
        ("a/0.jpg,cat\na/1.jpg, \n", "list.csv:2 must be a path and a label"),
        ("a/0.jpg,cat\na/7.jpg,cat\n", "list.csv:2: there is no file .*/a/7.jpg"),
    ],
)
def test_a_list_that_is_not_as_it_should_be_is_refused_with_its_line(tmp_path, text, message):
    make_folders(tmp_path, {"a": 2})
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "list.csv")


@pytest.mark.parametrize("name", ["list.csv", "LIST.CSV"])
def test_a_list_may_be_of_windows(tmp_path, name):
    make_folders(tmp_path, {"x": 2})
    text = "path,label\r\nx/0.jpg,Kühe\r\nx/1.jpg,Kühe\r\n"
    (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    assert load(tmp_path / name)[0].class_names == ("Kühe",)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("list.csv", "x/0.jpg,Kühe\n".encode("latin-1"), "list.csv must be a list in UTF-8"),
        ("list.csv", b'"' + b"x" * 200_000, "list.csv must be .*field larger than field limit"),
        ("list.txt", b"x/0.jpg,a\n", "in a .csv of paths and labels; this is neither: .*list.txt"),
    ],
)
def test_a_file_that_is_no_list_is_refused_by_name(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name)


@pytest.mark.parametrize("directory", ["", "/there/is/no/such/folder"])
def test_no_directory_is_refused(directory):
    with pytest.raises(DataError, match="there is no such folder or file"):
        load_source("folder", "train", directory)


def prepare(capsys, *options):
    """Runs the command in this process; returns its status and what it printed."""
    with pytest.raises(SystemExit) as end:
        main(["prepare", "folder", "--processes=0", *map(str, options)])
    output = capsys.readouterr()
    return end.value.code, output.out + " ".join(output.err.split())


def test_a_prepared_folder_has_the_images_and_classes_of_the_folder(tmp_path, capsys):
    make_folders(tmp_path / "My pets", {"cat": 5, "dog": 5})
    (tmp_path / "My pets/dog/4.jpg").write_bytes(encoded(8, ".png"))
    status, output = prepare(capsys, "--source", tmp_path / "My pets", "--out", tmp_path)
    assert status == 0, output
    assert "2 classes: cat, dog" in output and f"prepared {tmp_path}/my_pets/1.0.0" in output
    for split, name in (("train", "train"), ("val", "validation")):
        folder = load_source("folder", split, str(tmp_path / "My pets"))
        prepared = load_source("tfds", name, str(tmp_path / "my_pets"))
        assert prepared.class_names == folder.class_names
        pairs = [
            sorted((source[index]["image"], int(source[index]["label"])) for index in range(count))
            for source, count in ((folder, len(folder)), (prepared, len(prepared)))
        ]
        assert pairs[0] == pairs[1]


def test_val_may_be_elsewhere_and_lists_go_through_too(tmp_path, capsys):
    make_folders(tmp_path, {"big/a": 3, "big/b": 3, "small/b": 2})
    lines = [f"{name}/{number}.jpg,{name}" for name in "ab" for number in range(2)]
    (tmp_path / "big/list.csv").write_text("\n".join(["path,label", *lines]))
    for source, count in (("big", 6), ("big/list.csv", 4)):
        options = ("--source", tmp_path / source, "--val", tmp_path / "small")
        status, output = prepare(capsys, *options, "--out", tmp_path / str(count), "--name=two")
        assert status == 0, output
        train, val = (
            load_source("tfds", split, str(tmp_path / str(count)))
            for split in ("train", "validation")
        )
        assert (len(train), len(val)) == (count, 2) and val.class_names == ("a", "b")
        assert [int(val[index]["label"]) for index in range(2)] == [1, 1]


def test_a_class_may_be_called_train_where_val_is_given(tmp_path, capsys):
    classes = ("bus", "car", "train")
    make_folders(tmp_path / "rail", {f"{part}/{name}": 1 for part in "ab" for name in classes})
    options = ("--source", tmp_path / "rail/a", "--val", tmp_path / "rail/b")
    status, output = prepare(capsys, *options, "--out", tmp_path, "--name=rails")
    assert status == 0, output
    assert load_source("tfds", "train", str(tmp_path / "rails")).class_names == classes


def test_folders_beside_train_that_are_no_classes_do_not_matter(tmp_path):
    make_folders(tmp_path, {"train/a": 2, "val/a": 1, "test/a": 1, ".cache/x": 1, "notes": 0})
    assert [len(source) for source in load(tmp_path)] == [2, 1]


def test_damaged_files_are_listed_and_left_out(tmp_path, capsys):
    make_folders(tmp_path / "pets", {"train/a": 3, "train/b": 3, "val/a": 1})
    (tmp_path / "pets/train/b/1.jpg").write_bytes(encoded(1)[:100])
    (tmp_path / "pets/train/b/2.jpg").write_bytes(b"")
    status, output = prepare(capsys, "--source", tmp_path / "pets", "--out", tmp_path / "out")
    assert status == 0 and "2 left out: b/1.jpg: cannot decode" in output
    report = json.loads((tmp_path / "out/pets/1.0.0" / array_record.REPORT).read_text())
    assert len(report["reports"]["train"]["corrupt"]) == 2
    assert len(load_source("tfds", "train", str(tmp_path / "out"))) == 4


def test_a_file_that_cannot_be_read_is_replaced_in_a_batch_and_named(tmp_path):
    make_folders(tmp_path, {"train/a": 3, "val/a": 1})
    (tmp_path / "train/a/3.jpg").symlink_to("nowhere.jpg")
    train, _ = load(tmp_path)
    (tmp_path / "train/a/1.jpg").unlink()
    with evaluation_batches(train, Evaluate(8, 8, "bilinear"), batch_size=4) as batches:
        assert next(batches)["corrupt"].tolist() == [False, True, False, True]
    assert "a/3.jpg: No such file or directory" in describe(train, 3)


def test_files_that_cannot_be_read_are_listed_and_left_out(tmp_path, capsys):
    make_folders(tmp_path / "pets", {"train/a": 3, "val/a": 1})
    (tmp_path / "pets/train/a/3.jpg").symlink_to("nowhere.jpg")
    status, output = prepare(capsys, "--source", tmp_path / "pets", "--out", tmp_path / "out")
    assert status == 0 and "1 left out: a/3.jpg: cannot read" in output
    assert len(load_source("tfds", "train", str(tmp_path / "out"))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out=x",), "--source is required"),
        (("--source=x",), "--out is required"),
        (("--source=x", "--out=y"), "there is no such folder or file: 'x'"),
        (("--source=7 Days", "--out=y"), "--name must be lower-case letters"),
    ],
)
def test_options_that_cannot_be_used_are_told(capsys, options, message):
    status, output = prepare(capsys, *options)
    assert status in (1, 2) and message in output


def test_nothing_is_prepared_where_no_image_can_be_decoded(tmp_path, capsys):
    make_folders(tmp_path / "pets", {"train/a": 1, "val/a": 1})
    (tmp_path / "pets/val/a/0.jpg").write_bytes(b"no image")
    status, output = prepare(capsys, "--source", tmp_path / "pets", "--out", tmp_path / "out")
    assert status == 1 and "no image of validation can be decoded, such as a/0.jpg" in output
    assert not (tmp_path / "out/pets/1.0.0").exists()


def test_an_object_store_is_no_place_to_prepare_in(tmp_path, capsys):
    make_folders(tmp_path / "pets", {"a": 2})
    status, output = prepare(capsys, "--source", tmp_path / "pets", "--out=gs://bucket")
    assert status == 1 and "gs://bucket must be on a disk of this machine" in output
