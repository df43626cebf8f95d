"""`mobilevitv2 prepare folder`: images in folders of classes, or in lists, as a TFDS data set."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from absl import flags as absl_flags

from mobilevitv2_jax.cli import flags, help
from mobilevitv2_jax.cli.preparation import define_output, prepare, read_output, require, say
from mobilevitv2_jax.data.array_record import SplitReport
from mobilevitv2_jax.errors import ConfigError, DataError

USAGE = """
Makes a TFDS data set, in ArrayRecord files, of images in a folder for each class, or of a .csv of
paths and labels. Where train/ and val/ (or train.csv and val.csv) are in the folder, they become
the splits "train" and "validation"; else a fifth of every class is held out. Images are stored
as they are; those that cannot be decoded are listed and left out. The same command goes on where
it was stopped.

    mobilevitv2 prepare folder --source PATH [--val PATH] --out DIR [--name NAME]

    mobilevitv2 prepare folder --source pets --out ~/tensorflow_datasets
    mobilevitv2 prepare folder --source imagenet21k_train --val imagenet21k_val \\
        --name imagenet21k_p --out ~/tensorflow_datasets
"""

_SPLITS = {"train": "train", "val": "validation"}  # as TFDS calls them


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv):
        return 0
    require(values, source="a folder with a folder of images for each class, or a .csv")
    output = read_output(values)
    source = os.path.expanduser(values.source)
    name = values.name or re.sub(r"\W", "_", pathlib.Path(source).absolute().stem.lower())
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"--name must be lower-case letters, digits and _, got {name!r}")

    # Here and not above: a mistake in the arguments should not wait for it to load.
    from mobilevitv2_jax.data import folder

    say(f"looking for images in {source}")
    sources = folder.load_both(source, os.path.expanduser(values.val or ""))
    splits = {_SPLITS[split]: folder.FolderExamples(part) for split, part in sources.items()}
    names = sources["train"].class_names
    say(f"{len(names):,} classes: {', '.join(names[:5])}{', ...' * (len(names) > 5)}")
    prepare(output, folder.description(name, names), splits, _check)
    return 0


def _check(reports: Mapping[str, SplitReport]) -> None:
    for split, report in reports.items():
        if not report.examples:
            raise DataError(f"no image of {split} can be decoded, such as {report.corrupt[0]}")


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    flags.define(values, "source", str, "a folder of classes, or a .csv of paths and labels")
    flags.define(values, "val", str, "where the held-out images are, if they are elsewhere")
    flags.define(values, "name", str, "how the data set is called; default that of the source")
    define_output(values)
    return values
