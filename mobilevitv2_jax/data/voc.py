"""Pascal VOC 2012 segmentation: the development kit as it is distributed, or a prepared set.

    VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg
                      SegmentationClass/2007_000032.png    palette PNG; 255 along all outlines
                      SegmentationClassAug/…png            of trainaug, where it is there
                      ImageSets/Segmentation/train.txt     1,464; val.txt 1,449; trainval.txt

Split "trainaug" has the 10,582 images of the published recipes: those of train, and those of the
Semantic Boundaries Dataset that are not in val. Their maps are in SegmentationClassAug, or in SBD
itself (`benchmark_RELEASE/dataset/cls/*.mat`) beside VOC2012 or VOCdevkit.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator

from mobilevitv2_jax.data.examples import Description
from mobilevitv2_jax.data.maps import FileMaps, check_split, find_root, list_files
from mobilevitv2_jax.data.prepared_maps import RecordMaps, features, open_prepared
from mobilevitv2_jax.errors import DataError

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

SPLITS = ()  # those of the kit, or those of the prepared set

EXPECTED = {"train": 1464, "val": 1449, "trainval": 2913, "trainaug": 10_582}
"""Images in each split of the complete data."""

DESCRIPTION = Description(
    name="voc2012_segmentation",
    version="1.0.0",
    features=functools.partial(features, CLASSES),
    text="Pascal VOC 2012 images with a map of classes each: 0 to 20, and 255 for no class.",
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
)

_LISTS = "ImageSets/Segmentation"
_AUGMENTED_LISTS = (f"{_LISTS}/trainaug.txt", f"{_LISTS}/train_aug.txt", "list/train_aug.txt")
_MAPS, _AUGMENTED_MAPS = "SegmentationClass", "SegmentationClassAug"
_SBD = ("benchmark_RELEASE/dataset", "SBD", "sbd")


def load(split: str, directory: str = "") -> FileMaps | RecordMaps:
    """Opens a split of the kit, or of what `mobilevitv2 prepare voc` made.

    Args:
        split: "train", "val", "trainval" or "trainaug"; of a prepared set also several of its
            own, joined by "+".
        directory: VOC2012, VOCdevkit, the folder above, or a prepared set.

    Raises:
        DataError: if files are missing, or there is no such split.
    """
    root = find_kit(directory)
    if root:
        return read(split, root)
    return open_prepared("voc", DESCRIPTION.name, split, directory, "VOC2012/JPEGImages")


def find_kit(directory: str) -> pathlib.Path | None:
    """Returns the folder VOC2012 that a directory is or holds."""
    return find_root(directory, ("", "VOC2012", "VOCdevkit/VOC2012"), "JPEGImages")


def read(split: str, root: pathlib.Path, sbd: str = "") -> FileMaps:
    """Lists a split of the kit.

    Args:
        split: one of `EXPECTED`.
        root: the folder VOC2012.
        sbd: the folder of SBD that has `cls`, where it is not beside the kit.

    Raises:
        DataError: if files are missing, or there is no such split.
    """
    check_split("voc", split, EXPECTED)
    maps = _augmented(root, sbd) if split == "trainaug" else _plain(root, split)
    pairs = ((f"JPEGImages/{name}.jpg", path) for name, path in maps)
    return list_files("voc", split, CLASSES, root, pairs)


def _plain(root: pathlib.Path, split: str) -> Iterator[tuple[str, str]]:
    """Yields the name of each image of a list with the path of its map."""
    for name in _names(root / _LISTS / f"{split}.txt"):
        yield name, f"{_MAPS}/{name}.png"


def _augmented(root: pathlib.Path, sbd: str) -> Iterator[tuple[str, str]]:
    """Yields the name of each image of trainaug with the path of its map."""
    train = set(_names(root / _LISTS / "train.txt"))
    if (root / _AUGMENTED_MAPS).is_dir():
        folder, ending, own = root / _AUGMENTED_MAPS, ".png", set()
    else:
        # SBD has no void along outlines: where VOC has a map of its own, that one is better.
        folder, ending, own = _find_sbd(root, sbd) / "cls", ".mat", train
    found = next((root / path for path in _AUGMENTED_LISTS if (root / path).is_file()), None)
    if found:
        names = _names(found)
    else:
        held_out = set(_names(root / _LISTS / "val.txt"))
        names = sorted(({path.stem for path in folder.glob(f"*{ending}")} | train) - held_out)
    for name in names:
        yield name, f"{_MAPS}/{name}.png" if name in own else str(folder / (name + ending))


def _find_sbd(root: pathlib.Path, sbd: str) -> pathlib.Path:
    above = (root, root.parent, root.parent.parent)
    places = [pathlib.Path(sbd)] if sbd else [base / place for base in above for place in _SBD]
    for place in places:
        for folder in (place, place / "dataset", place / "benchmark_RELEASE" / "dataset"):
            if (folder / "cls").is_dir():
                return folder.absolute()
    raise DataError(
        f"split trainaug needs the maps of SBD: {_AUGMENTED_MAPS} in {root}, or "
        f"{_SBD[0]}/cls beside it{f' (not in {sbd})' if sbd else ''}"
    )


def _names(file: pathlib.Path) -> list[str]:
    """Returns the names in a list; of lines with paths, the name of the first."""
    if not file.is_file():
        raise DataError(f"the list {file} is missing")
    lines = filter(None, map(str.strip, file.read_text().splitlines()))
    return [pathlib.PurePath(line.split()[0]).stem for line in lines]
