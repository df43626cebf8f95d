"""`mobilevitv2 bench`: compares exported files in size, accuracy and latency."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags as absl_flags

from mobilevitv2_jax.cli import flags, help
from mobilevitv2_jax.errors import ConfigError

USAGE = """
Compares files that `mobilevitv2 export` wrote: size, held-out accuracy, and the latency of a batch
on one core and on two, beside jax.jit and, where it is installed, Hugging Face's model, eager and
under torch.compile. All run in turn, in one process for each number of cores.

    mobilevitv2 bench --exported FILE ... --pretrained PATH

    mobilevitv2 bench --pretrained runs/digits --exported digits.tflite digits.onnx
"""


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv, positional=("exported",)):
        return 0
    for name in ("pretrained", "exported"):
        if not values[name].value:
            raise ConfigError(
                f"--{name} is required: mobilevitv2 bench --exported FILE ... --pretrained PATH"
            )
    rounds = values.rounds if values.rounds is not None else 100
    if rounds < 1:
        raise ConfigError(f"--rounds must be at least 1, got {rounds}")

    # Here and not above: loading jax takes seconds, and a mistake in the arguments should not.
    from mobilevitv2_jax.export.bench import table

    def tell(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    sys.stdout.write(table(values.exported, values.pretrained, rounds, tell) + "\n")
    return 0


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    flags.define(values, "exported", list, "files of `mobilevitv2 export`; without --exported")
    flags.define(values, "pretrained", str, "the weights that they were exported from; required")
    flags.define(values, "rounds", int, "how often each runs; default 100")
    return values
