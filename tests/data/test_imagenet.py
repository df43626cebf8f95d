"""ImageNet from archives with the structure of the originals."""

import io
import json
import re
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from small_imagenet import train_images, validation_images, write_train, write_validation
from small_images import cmyk, encoded, noise, tar

from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.data import array_record, imagenet
from mobilevitv2_jax.data.image import decode, to_rgb_jpeg
from mobilevitv2_jax.errors import DataError


def prepare(capsys, tmp_path, *options):
    """Runs the command on the archives in a directory; returns its status and what it printed."""
    arguments = [f"--train-tar={tmp_path / 'train.tar'}", f"--val-tar={tmp_path / 'val.tar'}"]
    arguments = [item for item in arguments if not any(o.startswith(item[:9]) for o in options)]
    with pytest.raises(SystemExit) as end:
        main(["prepare", "imagenet", *arguments, f"--out={tmp_path}", "--processes=0", *options])
    output = capsys.readouterr()
    return end.value.code, output.out + " ".join(output.err.split())


def read(tmp_path, split):
    """Returns `{name: (bytes, label)}` as TFDS reads its own data set."""
    source = tfds.data_source(
        "imagenet2012",
        split=split,
        data_dir=tmp_path,
        download=False,
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    return {
        example["file_name"].decode(): (example["image"], example["label"]) for example in source
    }


def test_tfds_reads_what_was_prepared_as_its_own_imagenet(tmp_path, capsys):
    train, validation = train_images(per_class=1, classes=30), validation_images(60)
    write_train(tmp_path / "train.tar", train)
    write_validation(tmp_path / "val.tar", validation)
    status, output = prepare(capsys, tmp_path, "--allow-partial")
    assert status == 0, output
    assert f"prepared {tmp_path}/imagenet2012/5.1.0" in output
    assert "train: 30 examples" in output and "validation: 60 examples" in output

    names = imagenet.class_names()
    expected = {
        file: (data, names.index(name))
        for name, images in train.items()
        for file, data in images.items()
    }
    assert read(tmp_path, "train") == expected
    found = read(tmp_path, "validation")
    assert {name: data for name, (data, _) in found.items()} == validation
    # The first labels of TFDS's packaged list.
    labels = [found[f"ILSVRC2012_val_{number:08d}.JPEG"][1] for number in (1, 2, 3)]
    assert [names[label] for label in labels] == ["n01751748", "n09193705", "n02105855"]
    assert "tensorflow" not in sys.modules


def test_the_odd_files_become_rgb_jpegs_and_all_others_stay_as_they_are(tmp_path, capsys):
    train = train_images(per_class=2, classes=4)
    names = list(train)
    train[names[0]][f"{names[0]}_9.JPEG"] = cmyk(5, (64, 64))
    train[names[1]][f"{names[1]}_9.JPEG"] = encoded(6, ".png")
    write_train(tmp_path / "train.tar", train)
    status, output = prepare(capsys, tmp_path, "--allow-partial", "--val-tar=")
    assert status == 0, output
    assert "2 changed" in output and f"{names[0]}_9.JPEG: CMYK made an RGB JPEG" in output
    found = read(tmp_path, "train")
    for images in train.values():
        for name, data in images.items():
            assert (found[name][0] == data) != name.endswith("_9.JPEG")
    png = found[f"{names[1]}_9.JPEG"][0]
    # JPEG at quality 100 without subsampling: a few levels of rounding, in the worst pixel.
    np.testing.assert_allclose(decode(png).astype(int), noise(6), atol=6)


def test_a_cmyk_jpeg_keeps_its_colours():
    image = np.zeros((32, 48, 3), np.uint8)
    image[:16, :16], image[:16, 16:32], image[16:] = (200, 30, 40), (20, 180, 90), (250, 250, 250)
    buffer = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(buffer, "JPEG", quality=100)
    data, remark = to_rgb_jpeg(buffer.getvalue())
    assert remark == "CMYK made an RGB JPEG"
    # Two JPEG encodings, away from the edges of the patches.
    for rows, columns in (((2, 6), (2, 6)), ((2, 6), (20, 28)), ((26, 30), (10, 40))):
        patch = np.s_[slice(*rows), slice(*columns)]
        np.testing.assert_allclose(decode(data)[patch].astype(int), image[patch], atol=4)


def test_damaged_images_are_counted_named_and_left_out_where_that_is_allowed(tmp_path, capsys):
    train = train_images(per_class=3, classes=4)
    name = next(iter(train))
    train[name][f"{name}_1.JPEG"] = train[name][f"{name}_1.JPEG"][:200]
    train[name][f"{name}_2.JPEG"] = b""
    write_train(tmp_path / "train.tar", train)
    examples = imagenet.train_examples(str(tmp_path / "train.tar"))
    with pytest.raises(DataError, match="2 images of train are damaged .*_1.JPEG: cannot decode"):
        write(tmp_path, {"train": examples}, imagenet.check_written)
    assert not (tmp_path / "imagenet2012/5.1.0").exists()
    status, output = prepare(capsys, tmp_path, "--allow-partial", "--val-tar=")
    assert status == 0, output
    assert "train: 10 examples" in output and "2 left out" in output
    report = json.loads((tmp_path / "imagenet2012/5.1.0/preparation.json").read_text())
    assert [line[:16] for line in report["reports"]["train"]["corrupt"]] == [
        f"{name}_1.JPEG",
        f"{name}_2.JPEG",
    ]
    assert len(read(tmp_path, "train")) == 10


def test_an_archive_that_was_mended_gives_what_was_missing(tmp_path, capsys):
    train = train_images(per_class=4, classes=4)
    name, whole = next(iter(train)), train_images(per_class=4, classes=4)
    train[name][f"{name}_1.JPEG"] = bytes(len(whole[name][f"{name}_1.JPEG"]))  # of the same size
    for images in (train, whole):
        write_train(tmp_path / "train.tar", images)
        examples = imagenet.train_examples(str(tmp_path / "train.tar"))
        if images is train:
            with pytest.raises(DataError, match="1 images of train are damaged"):
                write(tmp_path, {"train": examples}, imagenet.check_written, shard_bytes=3000)
    progress = []
    options = {"shard_bytes": 3000, "tell": progress.append}
    write(tmp_path, {"train": examples}, imagenet.check_written, **options)
    assert len(read(tmp_path, "train")) == 16
    assert progress[0].shards == progress[0].all_shards - 1 > 0  # all others were kept


def write(tmp_path, splits, accept, **options):
    array_record.write(
        imagenet.description(),
        splits,
        tmp_path,
        processes=0,
        accept=accept,
        **{"tell": lambda progress: None, **options},
    )


def test_missing_classes_are_named(tmp_path, capsys):
    train = train_images(per_class=1, classes=4)
    names = list(train)
    train[names[1]] = {}
    write_train(tmp_path / "train.tar", train)
    status, output = prepare(capsys, tmp_path, "--val-tar=")
    assert status == 1
    fifth = imagenet.class_names()[4]
    assert f"has no images of 997 of the 1,000 classes ({names[1]}, {fifth}, " in output
    assert "--allow-partial" in output
    assert not (tmp_path / "imagenet2012").exists()


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("missing", [1, 0, -1])
def test_only_the_official_number_of_images_is_complete(split, missing):
    count = imagenet.OFFICIAL[split] - missing
    zeros = np.zeros(count, np.int8)
    examples = imagenet.ArchiveExamples("x.tar", zeros, zeros, zeros, np.arange(count) % 1000)
    if not missing:
        imagenet.check_complete({split: examples})
        return
    with pytest.raises(DataError, match=f"x.tar has {count:,} images, and {split} of ILSVRC2012"):
        imagenet.check_complete({split: examples})


def train_of(members):
    return tar({"n01440764.tar": tar(members)})


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (tar({"n01440764.zip": b""}), b"", "n01440764.zip, which is no archive of one of"),
        (tar(validation_images(1)), b"", "this is not ILSVRC2012_img_train.tar"),
        (b"", train_of({}), "n01440764.tar, which is no validation image"),
        (b"", tar({"ILSVRC2012_val_00050001.JPEG": b"x"}), "which is no validation image"),
        (train_of({"../a.JPEG": b"x"}), b"", "n01440764.tar in .* has the member '../a.JPEG'"),
        (train_of({"a.JPEG": b"x" * 9999})[:5000], b"", "is not a whole tar archive"),
        (tar({}), b"", "is not a whole tar archive|has no images"),
    ],
)
def test_archives_that_are_not_the_originals_are_refused(
    tmp_path, capsys, train, validation, message
):
    options = []
    for option, data in (("train", train), ("val", validation)):
        (tmp_path / f"{option}.tar").write_bytes(data)
        options += [] if data else [f"--{option}-tar="]
    status, output = prepare(capsys, tmp_path, "--allow-partial", *options)
    assert status == 1
    assert re.search(message, output), output
    assert not (tmp_path / "imagenet2012").exists()


def test_an_image_that_is_there_twice_is_refused(tmp_path):
    image = {"n01440764_1.JPEG": encoded(0)}
    (tmp_path / "train.tar").write_bytes(
        tar({"n01440764.tar": tar(image), "n01443537.tar": tar(image)})
    )
    with pytest.raises(DataError, match="has 1 images more than once"):
        imagenet.train_examples(str(tmp_path / "train.tar"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out is required"),
        (["--out=x"], "--train-tar is required, or --val-tar"),
        (["--out=x", "--train-tar=/no/such.tar"], "there is no file /no/such.tar"),
        (["--out=x", "--val-tar=/no/such.tar"], "there is no file /no/such.tar"),
        (["--out=x", "--val-tar=/no.tar", "--processes=-1"], "--processes must be at least 0"),
        (["--out=x", "--val-tar=/no.tar", "--shard-mb=0"], "--shard-mb must be at least 1"),
        (["--outt=x"], "unknown option --outt .*'out'"),
    ],
)
def test_arguments_that_cannot_be_used_are_told(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["prepare", "imagenet", *arguments])
    assert re.search(message, capsys.readouterr().err)


def test_the_command_tells_its_kinds_and_their_options(capsys):
    for arguments, text in (
        (["prepare", "--help"], "mobilevitv2 prepare VERB"),
        (["prepare", "imagenet", "--help"], "--allow-partial"),
        (["prepare"], "imagenet"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0 and text in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["prepare", "imagnet"])
    assert "unknown verb 'imagnet' (did you mean 'imagenet'?)" in capsys.readouterr().err
