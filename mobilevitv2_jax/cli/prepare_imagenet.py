"""`mobilevitv2 prepare imagenet`: the original archives of ILSVRC2012 as a TFDS data set."""

from __future__ import annotations

import os
from collections.abc import Sequence

from absl import flags as absl_flags

from mobilevitv2_jax.cli import flags, help
from mobilevitv2_jax.cli.preparation import (
    define_output,
    prepare,
    read_output,
    say,
)
from mobilevitv2_jax.errors import ConfigError

USAGE = """
Makes the TFDS data set imagenet2012, in ArrayRecord files, of the original archives. Nothing is
unpacked on the way: beside the archives it takes their size once more. The same command goes on
where it was stopped. Give one archive alone to prepare that split only.

    mobilevitv2 prepare imagenet --train-tar FILE --val-tar FILE --out DIR

    mobilevitv2 prepare imagenet --train-tar ILSVRC2012_img_train.tar \\
        --val-tar ILSVRC2012_img_val.tar --out ~/tensorflow_datasets
"""


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv):
        return 0
    output = read_output(values)
    if not values.train_tar and not values.val_tar:
        raise ConfigError("--train-tar is required, or --val-tar, or both: the original archives")

    # Here and not above: a mistake in the arguments should not wait for it to load.
    from mobilevitv2_jax.data import imagenet

    splits = {}
    if values.train_tar:
        say(f"looking for the images in {values.train_tar}")
        path = os.path.expanduser(values.train_tar)
        splits["train"] = imagenet.train_examples(path, output.processes)
    if values.val_tar:
        path = os.path.expanduser(values.val_tar)
        splits["validation"] = imagenet.validation_examples(path)
    if not values.allow_partial:
        imagenet.check_complete(splits)
    accept = (lambda reports: None) if values.allow_partial else imagenet.check_written
    prepare(output, imagenet.description(), splits, accept)
    return 0


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    flags.define(values, "train_tar", str, "ILSVRC2012_img_train.tar")
    flags.define(values, "val_tar", str, "ILSVRC2012_img_val.tar")
    define_output(values)
    flags.define(
        values,
        "allow_partial",
        bool,
        "go on with fewer classes or images than ILSVRC2012 has, and leave damaged images out",
    )
    return values
