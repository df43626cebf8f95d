"""`mobilevitv2 prepare voc`: Pascal VOC 2012 segmentation as a TFDS data set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from absl import flags as absl_flags

from mobilevitv2_jax.cli import flags, help
from mobilevitv2_jax.cli.preparation import define_output, prepare, read_output, require, say
from mobilevitv2_jax.data.array_record import SplitReport
from mobilevitv2_jax.data.examples import Examples
from mobilevitv2_jax.errors import ConfigError, DataError

USAGE = """
Makes the TFDS data set voc2012_segmentation, in ArrayRecord files: images as they are, maps of
classes as grey PNGs, every value kept. Splits: "train" and "val"; "trainaug" where the maps of
SBD are found (SegmentationClassAug in VOC2012, or SBD beside it); "coco" with --coco: images of
COCO 2017 with VOC's classes, to be trained on as "trainaug+coco". The same command goes on where
it was stopped.

    mobilevitv2 prepare voc --source DIR [--sbd DIR] [--coco DIR] --out DIR

    mobilevitv2 prepare voc --source VOCdevkit --sbd benchmark_RELEASE --out ~/tensorflow_datasets
    mobilevitv2 prepare voc --source VOCdevkit --coco coco2017 --out ~/tensorflow_datasets
"""


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv):
        return 0
    require(values, source="the folder VOCdevkit, as it is distributed")
    output = read_output(values)
    source, sbd, coco = (
        os.path.expanduser(path or "") for path in (values.source, values.sbd, values.coco)
    )

    # Here and not above: a mistake in the arguments should not wait for it to load.
    from mobilevitv2_jax.data import prepared_maps, voc

    splits = _splits(source, sbd)
    if not values.allow_partial:
        prepared_maps.check_complete(splits, voc.EXPECTED)
    if coco:
        from mobilevitv2_jax.data.coco import CocoExamples

        say(f"reading the annotations in {coco}")
        splits["coco"] = CocoExamples(coco)

    def accept(reports: Mapping[str, SplitReport]) -> None:
        # Of COCO's images some show one class alone, which only their maps tell.
        own = {split: report for split, report in reports.items() if split != "coco"}
        if not values.allow_partial:
            prepared_maps.check_written(own)

    prepare(output, voc.DESCRIPTION, splits, accept)
    return 0


def _splits(source: str, sbd: str) -> dict[str, Examples]:
    from mobilevitv2_jax.data import voc
    from mobilevitv2_jax.data.prepared_maps import MapExamples

    root = voc.find_kit(source)
    if root is None:
        raise ConfigError(
            f"--source must be the folder VOCdevkit, with VOC2012/JPEGImages in it, got {source}"
        )
    splits: dict[str, Examples] = {}
    for split in ("train", "trainaug", "val"):
        try:
            splits[split] = MapExamples(voc.read(split, root, sbd))
        except DataError as error:
            if split != "trainaug" or sbd:
                raise
            say(f"no split trainaug: {error}")
    return splits


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    flags.define(values, "source", str, "the folder VOCdevkit")
    flags.define(values, "sbd", str, "the Semantic Boundaries Dataset: benchmark_RELEASE")
    flags.define(values, "coco", str, "COCO 2017: annotations/ and train2017/ in it")
    define_output(values)
    flags.define(
        values,
        "allow_partial",
        bool,
        "go on with fewer images than VOC has, and leave out maps and images that are damaged",
    )
    return values
