"""`mobilevitv2 eval`: evaluates a checkpoint of a run."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags as absl_flags
from etils import epath

from mobilevitv2_jax.cli import flags, help, processes
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.training.run_directory import read_config

USAGE = """
Evaluates a checkpoint of a run on the held-out data of its config.

    python eval.py --workdir DIR [--step N | --best]

    python eval.py --workdir runs/digits              the latest checkpoint
    python eval.py --workdir runs/digits --best       the best one that was kept
"""


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv):
        return 0
    if not values.workdir:
        raise ConfigError("--workdir is required: the directory of a run, such as runs/digits")
    if values.step is not None and values.best:
        raise ConfigError("--step and --best exclude each other: give one of them, or neither")
    workdir = epath.Path(values.workdir)
    config = read_config(workdir)

    processes.start(values)
    # Here and not above: loading jax takes seconds, and a mistake in the arguments should not.
    from mobilevitv2_jax.training.evaluate import evaluate_run

    return evaluate_run(config, workdir, step=values.step, best=bool(values.best))


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    flags.define(values, "workdir", str, "the directory of a run; required")
    flags.define(values, "step", int, "the step of the checkpoint; default the latest")
    flags.define(values, "best", bool, "the best checkpoint by the run's checkpoint.best_metric")
    processes.define(values)
    return values
