"""`mobilevitv2 prepare voc` and `prepare ade20k`, in this process."""

import pytest
from small_voc import add_sbd, make_ade20k, make_coco, make_voc, palette_png, write

from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.data.sources import load_source


def prepare(capsys, *arguments):
    """Returns the exit status of a preparation, what it printed, and its error."""
    with pytest.raises(SystemExit) as caught:
        main(["prepare", *map(str, arguments), "--processes=0"])
    return caught.value.code, *capsys.readouterr()


def test_voc_is_prepared_with_all_its_splits_and_coco_beside_it(tmp_path, capsys):
    make_voc(tmp_path / "voc")
    add_sbd(tmp_path / "elsewhere", ["2008_000001"])
    sbd = tmp_path / "elsewhere" / "benchmark_RELEASE"
    image = "VOCdevkit/VOC2012/JPEGImages/2008_000001.jpg"
    write(tmp_path / "voc" / image, (tmp_path / "elsewhere" / image).read_bytes())
    make_coco(tmp_path / "coco")
    arguments = ("--source", tmp_path / "voc", "--out", tmp_path / "out")
    status, _, error = prepare(capsys, "voc", *arguments)
    assert status == 1 and "train has 6 images, and the complete data 1,464" in error
    status, printed, _ = prepare(
        capsys, "voc", *arguments, "--sbd", sbd, "--coco", tmp_path / "coco", "--allow-partial"
    )
    assert status == 0 and "trainaug: 7 examples" in printed
    lengths = {"train": 6, "val": 5, "trainaug": 7, "coco": 2, "trainaug+coco": 9}
    for split, length in lengths.items():
        assert len(load_source("voc", split, str(tmp_path / "out"))) == length


def test_what_cannot_be_used_ends_a_preparation_unless_it_may_be_left_out(
    tmp_path, capsys, monkeypatch
):
    from mobilevitv2_jax.data import voc

    monkeypatch.setattr(voc, "EXPECTED", {"train": 6, "val": 5, "trainaug": 7})
    maps = make_voc(tmp_path)
    folder = tmp_path / "VOCdevkit/VOC2012/SegmentationClass"
    write(folder / "2007_000007.png", palette_png(maps["2007_000000"]))
    arguments = ("voc", "--source", tmp_path, "--out", tmp_path / "out")
    status, printed, error = prepare(capsys, *arguments)
    assert status == 1
    assert "no split trainaug: split trainaug needs the maps of SBD" in printed
    assert "1 examples of val cannot be used" in error and "2007_000007.png" in error
    status, printed, _ = prepare(capsys, *arguments, "--allow-partial")
    assert status == 0 and "1 left out" in printed and "2007_000007.png" in printed
    assert len(load_source("voc", "val", str(tmp_path / "out"))) == 4


def test_ade20k_is_prepared_with_the_names_of_its_classes(tmp_path, capsys):
    make_ade20k(tmp_path)
    arguments = ("ade20k", "--source", tmp_path, "--out", tmp_path / "out")
    assert prepare(capsys, *arguments)[0] == 1  # not 20,210 images
    assert prepare(capsys, *arguments, "--allow-partial")[0] == 0
    source = load_source("ade20k", "training", str(tmp_path / "out"))
    assert len(source) == 3 and source.class_names == ("wall", "building")


@pytest.mark.parametrize("kind", ["voc", "ade20k"])
def test_a_source_that_is_none_is_refused(tmp_path, capsys, kind):
    status, _, error = prepare(capsys, kind, "--source", tmp_path, "--out", tmp_path / "out")
    assert status == 2 and "--source must be the folder" in error
    status, _, error = prepare(capsys, kind, "--out", tmp_path / "out")
    assert status == 2 and "--source is required" in error
