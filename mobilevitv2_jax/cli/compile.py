"""`mobilevitv2 compile`: compiles the training step for a TPU pod, without the pod."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from absl import flags as absl_flags

from mobilevitv2_jax.cli import flags, help
from mobilevitv2_jax.cli.experiment import define_config, read_experiment
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.validation import validate

USAGE = """
Compiles the training step for the chips of a TPU pod, on any machine, and prints memory per chip,
arithmetic and traffic per image, collectives, and the least time of a step. It ends with an error
if the program does not fit a chip. Needs pip install 'mobilevitv2-jax[tpu-compile]'.

    mobilevitv2 compile --topology CHIP:ROWSxCOLUMNS [--config FILE[:ARG]] [--config.key=value ...]

    mobilevitv2 compile --topology v5e:2x2 --config.data.batch_size=32 --config.eval.batch_size=32
    mobilevitv2 compile --topology v5e:16x16 --config.data.batch_size=32768 \\
        --config.eval.batch_size=256 --config.model.dtype=bfloat16 --config.data.source=synthetic
"""


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv):
        return 0
    if not values.topology:
        raise ConfigError("--topology is required: the chips to compile for, such as v5e:16x16")
    config = read_experiment(values).config
    validate(config)
    # What is computed here is computed on the CPU, even beside a TPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    # A program for chips that are not there can be put into the cache, but not be read back.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

    # Here and not above: loading jax takes seconds, and a mistake in the arguments should not.
    from mobilevitv2_jax.training.initialization import resolve
    from mobilevitv2_jax.training.pod import compile_step

    config = resolve(config, say=_tell)
    sys.stdout.write(compile_step(config, values.topology)[1])
    return 0


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    define_config(values)
    flags.define(
        values, "topology", str, "chips, such as v5e:16x16, v5p:4x4x4 or v6e:2x2; required"
    )
    return values
