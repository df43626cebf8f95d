"""`mobilevitv2 convert`: writes weights in another project's form."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags as absl_flags

from mobilevitv2_jax.cli import flags, help
from mobilevitv2_jax.errors import ConfigError

USAGE = """
Writes weights as Hugging Face (hf), timm or ml-cvnets (cvnets) load them, or as a plain tree of
orbax; compares the outputs of both sides on photographs, and writes nothing where they differ.

    mobilevitv2 convert SOURCE DEST --to hf|timm|cvnets|orbax

    mobilevitv2 convert runs/digits digits-hf --to hf               the moving average of a run
    mobilevitv2 convert runs/digits raw --to orbax --raw --best     its weights at the best step
    mobilevitv2 convert mobilevitv2-1.0.pt mobilevitv2-hf --to hf   a file of the original release
"""


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv, positional=("source", "dest")):
        return 0
    for name in ("source", "dest", "to"):
        if not values[name].value:
            raise ConfigError(
                f"--{name} is required: mobilevitv2 convert SOURCE DEST --to hf|timm|cvnets|orbax"
            )
    if values.step is not None and values.best:
        raise ConfigError("--step and --best exclude each other: give one of them, or neither")
    checkpoint = "best" if values.best else "latest" if values.step is None else values.step

    # Here and not above: loading jax takes seconds, and a mistake in the arguments should not.
    from mobilevitv2_jax.training.report import aligned
    from mobilevitv2_jax.weights.convert import convert

    report = convert(
        values.source, values.dest, values.to, checkpoint=checkpoint, average=not values.raw
    )
    notes = "".join(f"note: {note}\n" for note in report.notes)
    sys.stdout.write(f"{aligned(report.rows)}\n{notes}")
    return 0


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    flags.define(values, "source", str, "weights of any kind that is read; without --source")
    flags.define(values, "dest", str, "the directory to be made; without --dest")
    flags.define(values, "to", str, "hf, timm, cvnets, or orbax; required")
    flags.define(values, "raw", bool, "of a run: the weights, not their moving average")
    flags.define(values, "step", int, "of a run: the step of the checkpoint; default the latest")
    flags.define(values, "best", bool, "of a run: its best checkpoint")
    return values
