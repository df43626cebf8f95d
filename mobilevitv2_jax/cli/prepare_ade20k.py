"""`mobilevitv2 prepare ade20k`: ADE20K scene parsing as a TFDS data set."""

from __future__ import annotations

import os
from collections.abc import Sequence

from absl import flags as absl_flags

from mobilevitv2_jax.cli import flags, help
from mobilevitv2_jax.cli.preparation import define_output, prepare, read_output, require
from mobilevitv2_jax.errors import ConfigError

USAGE = """
Makes the TFDS data set ade20k_150, in ArrayRecord files: images as they are, maps of the 150
classes, 0 to 149, as grey PNGs; 255 is what was 0, "other". Splits: "training" and "validation".
The same command goes on where it was stopped.

    mobilevitv2 prepare ade20k --source DIR --out DIR

    mobilevitv2 prepare ade20k --source ADEChallengeData2016 --out ~/tensorflow_datasets
"""


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv):
        return 0
    require(values, source="the folder ADEChallengeData2016, as it is distributed")
    output = read_output(values)

    # Here and not above: a mistake in the arguments should not wait for it to load.
    from mobilevitv2_jax.data import ade20k, prepared_maps

    root = ade20k.find_archive(os.path.expanduser(values.source))
    if root is None:
        raise ConfigError(
            "--source must be the folder ADEChallengeData2016, with annotations in it, "
            f"got {values.source}"
        )
    splits = {
        split: prepared_maps.MapExamples(ade20k.read(split, root)) for split in ade20k.EXPECTED
    }
    if not values.allow_partial:
        prepared_maps.check_complete(splits, ade20k.EXPECTED)
    accept = (lambda reports: None) if values.allow_partial else prepared_maps.check_written
    prepare(output, ade20k.description(root), splits, accept)
    return 0


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    flags.define(values, "source", str, "the folder ADEChallengeData2016")
    define_output(values)
    flags.define(
        values,
        "allow_partial",
        bool,
        "go on with fewer images than ADE20K has, and leave out maps and images that are damaged",
    )
    return values
