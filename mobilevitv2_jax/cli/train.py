"""`mobilevitv2 train`: trains a model, or continues a run that was stopped."""

from __future__ import annotations

import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import flags as absl_flags
from etils import epath

from mobilevitv2_jax.cli import flags, help, processes
from mobilevitv2_jax.cli.experiment import define_config, read_experiment
from mobilevitv2_jax.config import flatten, run_name
from mobilevitv2_jax.validation import validate

USAGE = """
Trains a model as a config says, or continues the run when it has already begun.

    python train.py [--config FILE[:ARG]] [--workdir DIR] [--config.key=value ...] [--dry-run]

    python train.py                                           handwritten digits, no download
    python train.py --config configs/digits.py:width=1.0      an argument of that config
    python train.py --config.schedule.total='30 epochs' --config.seed=1
    python train.py --config.augment.scale='(0.2, 1.0)' --noconfig.log.tensorboard
"""


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv):
        return 0
    experiment = read_experiment(values)
    validate(experiment.config)

    name = run_name(experiment.path, experiment.arg, experiment.overrides)
    workdir = epath.Path(values.workdir or f"runs/{name}")
    if values.dry_run:
        lines = [f"{key} = {value!r}\n" for key, value in flatten(experiment.config).items()]
        sys.stdout.write(f"{''.join(lines)}\nwould train in {workdir}; nothing was written\n")
        return 0

    processes.start(values)
    # Here and not above: loading jax takes seconds, and a mistake in the arguments should not.
    from mobilevitv2_jax.training import loop

    return loop.train(experiment.config, workdir, _command(argv))


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    define_config(values)
    flags.define(
        values, "workdir", str, "where the run lives; default runs/<config>[-<arg>][-<hash>]"
    )
    flags.define(
        values, "dry_run", bool, "print the resolved config and the workdir, and write nothing"
    )
    processes.define(values)
    return values


def _command(argv: Sequence[str]) -> str:
    """Returns the command line that gives these arguments again."""
    program = pathlib.Path(sys.argv[0]).name
    verb = "mobilevitv2 train" if program == "mobilevitv2" else "python train.py"
    return " ".join([verb, *map(shlex.quote, processes.without(argv))])
