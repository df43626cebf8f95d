"""`mobilevitv2 inspect`: tells what a config leads to, without training."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags as absl_flags

from mobilevitv2_jax.cli import flags, help
from mobilevitv2_jax.cli.experiment import define_config, read_experiment
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.training.run_directory import read_config
from mobilevitv2_jax.validation import validate

USAGE = """
Prints what a config leads to, without training: the resolved config, parameters and
multiply-accumulates of each stage, a batch's entries, memory, shardings and the rules in force.

    mobilevitv2 inspect [--config FILE[:ARG]] [--config.key=value ...] | --workdir DIR
    mobilevitv2 inspect --pretrained PATH                      weights: the model, and the rules

    mobilevitv2 inspect --config configs/digits.py:width=1.0
    mobilevitv2 inspect --config.mesh.fsdp=4 --config.data.batch_size=256
    mobilevitv2 inspect --workdir runs/digits                  the config of a run
"""


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv):
        return 0
    for alone in ("workdir", "pretrained"):
        others = [name for name in flags.given(values) if name != alone]
        if values[alone].value and others:
            raise ConfigError(
                f"--{alone} has a config of its own, so --{others[0]} has no place beside it: "
                "give one of them"
            )
    if values.pretrained:
        from mobilevitv2_jax.training.inspection import describe_pretrained

        sys.stdout.write(describe_pretrained(values.pretrained))
        return 0
    config = read_config(values.workdir) if values.workdir else read_experiment(values).config
    validate(config)

    # Here and not above: loading jax takes seconds, and a mistake in the arguments should not.
    from mobilevitv2_jax.training.initialization import resolve
    from mobilevitv2_jax.training.inspection import describe

    sys.stdout.write(describe(config if values.workdir else resolve(config)))
    return 0


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    define_config(values)
    flags.define(values, "workdir", str, "the directory of a run, in the place of a config")
    flags.define(values, "pretrained", str, "weights of any kind that is read, likewise")
    return values
