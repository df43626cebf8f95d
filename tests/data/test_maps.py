"""Maps of classes on disk: VOC, SBD, ADE20K, COCO and your own, in files and prepared."""

import os
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from small_voc import (
    add_sbd,
    encode,
    make_ade20k,
    make_coco,
    make_masks,
    make_voc,
    palette_png,
    write,
)

from mobilevitv2_jax.data import ade20k, array_record, voc
from mobilevitv2_jax.data.coco import CATEGORIES, CocoExamples
from mobilevitv2_jax.data.image import CorruptError
from mobilevitv2_jax.data.maps import decode_map
from mobilevitv2_jax.data.prepared_maps import MapExamples, check_written
from mobilevitv2_jax.data.sources import load_source
from mobilevitv2_jax.errors import DataError


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A development kit of 6 images to train on and 5 held out, and its maps by name."""
    directory = tmp_path_factory.mktemp("voc")
    return directory, make_voc(directory)


def labels_of(source):
    return [source[index]["label"] for index in range(len(source))]


def equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("inner", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_kit_is_read_as_it_is_distributed(kit, inner):
    directory, maps = kit
    source = load_source("voc", "val", str(directory / inner))
    assert source.class_names == voc.CLASSES and len(voc.CLASSES) == 21
    equal(labels_of(source), [maps[name] for name in sorted(maps)[6:]])
    assert {label.shape for label in labels_of(source)} >= {(375, 500), (500, 333)}
    assert all(255 in label for label in maps.values())
    assert [len(load_source("voc", split, str(directory))) for split in ("train", "trainval")] == [
        6,
        11,
    ]
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint == source.fingerprint
    np.testing.assert_array_equal(again[1]["label"], source[1]["label"])


def test_every_value_of_a_map_survives_reading_whatever_its_palette():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for data in (palette_png(values), encode(values, "PNG")):
        np.testing.assert_array_equal(decode_map(data), values)


@pytest.mark.parametrize("where", ["benchmark_RELEASE/dataset", "VOCdevkit/SBD"])
def test_trainaug_joins_vocs_own_maps_and_those_of_sbd_without_what_is_held_out(tmp_path, where):
    maps = make_voc(tmp_path)
    names = sorted(maps)
    added = add_sbd(tmp_path, [names[0], names[7], "2008_000001", "2008_000002"], where)
    source = load_source("voc", "trainaug", str(tmp_path))
    listed = [source.file_name(index).removesuffix(".jpg") for index in range(len(source))]
    assert listed == sorted([*names[:6], "2008_000001", "2008_000002"])
    equal(labels_of(source), [maps.get(name, added.get(name)) for name in listed])


def test_trainaug_of_a_folder_with_a_list_of_paths_is_read_in_its_order(tmp_path):
    maps = make_voc(tmp_path)
    root = tmp_path / "VOCdevkit/VOC2012"
    chosen = ["2007_000003", "2007_000001"]
    for name in chosen:
        write(root / f"SegmentationClassAug/{name}.png", encode(maps[name], "PNG"))
    lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in chosen]
    write(root / "list/train_aug.txt", "".join(lines))
    equal(labels_of(load_source("voc", "trainaug", str(tmp_path))), [maps[name] for name in chosen])


def test_what_is_missing_is_counted_and_named(tmp_path):
    make_voc(tmp_path)
    root = tmp_path / "VOCdevkit/VOC2012"
    with pytest.raises(DataError, match="trainaug needs the maps of SBD: SegmentationClassAug in"):
        load_source("voc", "trainaug", str(tmp_path))
    (root / "SegmentationClass/2007_000002.png").unlink()
    (root / "JPEGImages/2007_000001.jpg").unlink()
    message = (
        "lacks 2 of the 12 files of split train: JPEGImages/2007_000001.jpg, "
        "SegmentationClass/2007_000002.png"
    )
    with pytest.raises(DataError, match=message):
        load_source("voc", "train", str(tmp_path))
    with pytest.raises(DataError, match="one of train, val, trainval, trainaug, got 'vall'.*'val'"):
        load_source("voc", "vall", str(tmp_path))
    with pytest.raises(DataError, match="must hold VOC2012/JPEGImages, or voc2012_segmentation"):
        load_source("voc", "train", str(tmp_path / "elsewhere"))


def damaged_voc(directory):
    """Makes a kit in whose train split three of six maps are wrong, each in a way of its own."""
    maps = make_voc(directory)
    folder = directory / "VOCdevkit/VOC2012/SegmentationClass"
    write(folder / "2007_000000.png", palette_png(maps["2007_000001"]))
    unknown = maps["2007_000001"].copy()
    unknown[5, 5:7] = 21, 77
    write(folder / "2007_000001.png", palette_png(unknown))
    write(folder / "2007_000002.png", palette_png(maps["2007_000002"])[:200])
    return maps


def test_a_map_that_does_not_fit_its_image_is_named_with_what_is_wrong(tmp_path):
    damaged_voc(tmp_path)
    source = load_source("voc", "train", str(tmp_path))
    for index, message in enumerate(
        (
            r"2007_000000.png .of 2007_000000.jpg.: the map has 333 x 500 pixels, the image 500 x",
            r"2007_000001.png .*: the map has the value 21, 77, .*classes 0 to 20 and 255",
            r"2007_000002.png .*: cannot decode 200 bytes as a map",
        )
    ):
        with pytest.raises(CorruptError, match=message):
            source[index]
    with pytest.raises(CorruptError, match="a palette or grey levels, got RGB"):
        decode_map(encode(np.zeros((4, 4, 3), np.uint8), "PNG"))
    with pytest.raises(CorruptError, match="as a map"):
        decode_map(b"MATLAB 5.0 and nothing else")


def test_a_prepared_set_holds_the_maps_to_the_byte_and_tfds_reads_it(kit, tmp_path):
    directory, maps = kit
    root = voc.find_kit(str(directory))
    examples = {split: MapExamples(voc.read(split, root)) for split in ("train", "val")}
    path, _ = array_record.write(
        voc.DESCRIPTION, examples, tmp_path, processes=0, tell=lambda progress: None
    )
    for where in (tmp_path, path, path.parent):
        source = load_source("voc", "val", str(where))
        assert source.class_names == voc.CLASSES
    both = load_source("voc", "train+val", str(tmp_path))
    assert len(both) == 11 and both.fingerprint == "voc-prepared/train+val/11"
    stored = tfds.data_source(
        "voc2012_segmentation",
        split="val",
        data_dir=tmp_path,
        download=False,
        decoders={name: tfds.decode.SkipDecoding() for name in ("image", "segmentation")},
    )
    found = {}
    for index in range(5):
        name = stored[index]["file_name"].decode().removesuffix(".jpg")
        found[name] = source[index]["label"]
        file = root / "JPEGImages" / f"{name}.jpg"
        assert source[index]["image"] == stored[index]["image"] == file.read_bytes()
        np.testing.assert_array_equal(decode_map(stored[index]["segmentation"]), maps[name])
    equal([found[name] for name in sorted(found)], [maps[name] for name in sorted(maps)[6:]])


def test_what_cannot_be_used_is_left_out_of_a_prepared_set_and_listed(tmp_path):
    damaged_voc(tmp_path)
    root = voc.find_kit(str(tmp_path))
    jpeg = root / "JPEGImages/2007_000003.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:2000])
    examples = {"train": MapExamples(voc.read("train", root))}
    _, reports = array_record.write(
        voc.DESCRIPTION, examples, tmp_path / "out", processes=0, tell=lambda progress: None
    )
    assert reports["train"].examples == 2
    corrupt = sorted(line.rpartition("2007_")[2][:6] for line in reports["train"].corrupt)
    assert corrupt == ["000000", "000001", "000002", "000003"]


def test_the_same_command_goes_on_with_what_was_mended(tmp_path):
    make_voc(tmp_path)
    root = voc.find_kit(str(tmp_path))
    jpeg = root / "JPEGImages/2007_000003.jpg"
    whole = jpeg.read_bytes()

    def prepare():
        examples = {"train": MapExamples(voc.read("train", root))}
        options = {"processes": 0, "accept": check_written, "tell": lambda progress: None}
        return array_record.write(voc.DESCRIPTION, examples, tmp_path / "out", **options)[1]

    jpeg.write_bytes(whole[:2000])
    with pytest.raises(DataError, match="000003.*Mend them and run the same command again"):
        prepare()
    jpeg.write_bytes(whole)
    assert prepare()["train"].examples == 6


def test_ade20k_has_150_classes_from_0_and_other_is_void(tmp_path):
    maps = make_ade20k(tmp_path)
    source = load_source("ade20k", "validation", str(tmp_path))
    assert source.class_names == ("wall", "building")
    stored = [maps[name] for name in sorted(maps) if "val" in name]
    equal(labels_of(source), [np.where(label, label - 1, 255) for label in stored])
    root = ade20k.find_archive(str(tmp_path))
    examples = {"validation": MapExamples(source)}
    array_record.write(
        ade20k.description(root),
        examples,
        tmp_path / "out",
        processes=0,
        tell=lambda progress: None,
    )
    prepared = load_source("ade20k", "validation", str(tmp_path / "out"))
    assert prepared.class_names == source.class_names
    assert {label.tobytes() for label in labels_of(prepared)} == {
        label.tobytes() for label in labels_of(source)
    }
    (root / "objectInfo150.txt").unlink()
    with pytest.raises(DataError, match="objectInfo150.txt is missing"):
        load_source("ade20k", "training", str(tmp_path))


def test_coco_becomes_voc_with_the_first_of_overlapping_objects_in_front(tmp_path):
    """Worked by hand; tolerance: two pixels along outlines, which COCO draws through pixels."""
    make_coco(tmp_path)
    examples = pickle.loads(pickle.dumps(CocoExamples(str(tmp_path))))
    assert len(examples) == 2  # not the small one, and not the one with a stop sign alone
    label = decode_map(examples[0].values["segmentation"].getvalue())
    person, dog, cat = (voc.CLASSES.index(name) for name in ("person", "dog", "cat"))
    assert label.shape == (260, 300) and set(np.unique(label)) == {0, person, dog}
    assert (label[32:128, 22:118] == person).all() and (label[132:178, 72:168] == dog).all()
    assert label[210, 210] == 0
    crowd = decode_map(examples[1].values["segmentation"].getvalue())
    assert (crowd[:, 128:] == cat).all() and (crowd[:, :128] == 0).all()
    names = "aeroplane bicycle bird boat bottle bus car cat chair cow"
    assert voc.CLASSES[1:11] == tuple(names.split()) and CATEGORIES[:3] == (5, 2, 16)
    assert len(set(CATEGORIES)) == 20


def test_an_image_of_one_class_alone_is_left_out_with_the_reason(tmp_path):
    make_coco(tmp_path)
    examples = CocoExamples(str(tmp_path))
    examples._coco.anns[4]["segmentation"]["counts"] = [0, 256 * 256]
    with pytest.raises(CorruptError, match="000000000003.jpg: not used, for it shows one class"):
        examples[1]
    with pytest.raises(DataError, match="instances_val2017.json is missing"):
        CocoExamples(str(tmp_path), "val2017")


def test_your_own_masks_are_split_and_named_by_files(tmp_path):
    maps = make_masks(tmp_path)
    train, val = (load_source("masks", split, str(tmp_path)) for split in ("train", "val"))
    assert train.class_names == ("background", "disc", "square")
    assert (len(train), len(val)) == (8, 2)
    names = {
        source.file_name(index)[:-4] for source in (train, val) for index in range(len(source))
    }
    assert names == set(maps)
    write(tmp_path / "train.txt", "3\n1\n")
    with pytest.raises(DataError, match="train.txt alone"):
        load_source("masks", "val", str(tmp_path))
    write(tmp_path / "val.txt", "images/2.png\n")
    equal(labels_of(load_source("masks", "train", str(tmp_path))), [maps["3"], maps["1"]])
    equal(labels_of(load_source("masks", "val", str(tmp_path))), [maps["2"]])


def test_wrong_masks_of_your_own_are_counted_and_named_at_once(tmp_path):
    maps = make_masks(tmp_path)
    write(tmp_path / "masks/1.png", palette_png(np.full_like(maps["1"], 3)))
    write(tmp_path / "masks/2.png", palette_png(maps["2"][:-1]))
    write(tmp_path / "train.txt", "0\n1\n2\n")
    write(tmp_path / "val.txt", "4\n")
    with pytest.raises(DataError, match="2 of 3 masks cannot be used: .*1.png.*value 3.*2.png.*96"):
        load_source("masks", "train", str(tmp_path))
    write(tmp_path / "train.txt", "0\n7\nnone\n")
    with pytest.raises(DataError, match="lacks 2 of the 6 files .*: images/none, masks/none.png"):
        load_source("masks", "train", str(tmp_path))
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match="classes.txt is missing"):
        load_source("masks", "val", str(tmp_path))


def test_lists_of_your_own_may_be_of_windows_and_must_be_utf_8(tmp_path):
    maps = make_masks(tmp_path)
    mark = b"\xef\xbb\xbf"
    for name in ("classes.txt", "train.txt", "val.txt"):
        text = (tmp_path / name).read_bytes() if name == "classes.txt" else b"1\r\n2\r\n"
        (tmp_path / name).write_bytes(mark + text)
    source = load_source("masks", "train", str(tmp_path))
    assert source.class_names == ("background", "disc", "square")
    equal(labels_of(source), [maps["1"], maps["2"]])
    (tmp_path / "val.txt").write_bytes("Kühe\n".encode("latin-1"))
    with pytest.raises(DataError, match="val.txt must be a list in UTF-8"):
        load_source("masks", "val", str(tmp_path))


def rename(directory, name, new):
    """Gives one of the images of `make_masks`, and its mask, another name."""
    for folder in ("images", "masks"):
        (directory / f"{folder}/{name}.png").rename(directory / f"{folder}/{new}.png")


def test_two_images_with_one_mask_are_refused(tmp_path):
    make_masks(tmp_path)
    (tmp_path / "images/1.bmp").write_bytes(b"")
    with pytest.raises(DataError, match="has 1.bmp and 1.png, and one mask"):
        load_source("masks", "train", str(tmp_path))


@pytest.mark.parametrize("line", ["frame.0001", "frame.0001.png", "images/frame.0001.png"])
def test_a_name_in_a_list_may_have_a_dot_in_it(tmp_path, line):
    maps = make_masks(tmp_path)
    rename(tmp_path, "1", "frame.0001")
    write(tmp_path / "train.txt", line + "\n")
    write(tmp_path / "val.txt", "2\n")
    equal(labels_of(load_source("masks", "train", str(tmp_path))), [maps["1"]])


def test_a_name_need_not_be_utf_8(tmp_path):
    make_masks(tmp_path)
    rename(tmp_path, "1", os.fsdecode(b"K\xfche"))
    sources = [load_source("masks", split, str(tmp_path)) for split in ("train", "val")]
    assert [len(source) for source in sources] == [8, 2]
