"""`mobilevitv2 sweep`: trains the points of a config's `sweep()`, and compares them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from absl import flags as absl_flags
from etils import epath

from mobilevitv2_jax.cli import flags, help
from mobilevitv2_jax.cli.experiment import define_config, read_experiment
from mobilevitv2_jax.config import run_name
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.files import is_local
from mobilevitv2_jax.models.config import nearest
from mobilevitv2_jax.training.sweep.points import plan

USAGE = """
Trains the variants of a config that its sweep() returns, each in a process and a run directory of
its own, and compares them: a table with means over seeds, CSV, and pictures. The same command again
continues where it stopped.

    mobilevitv2 sweep CONFIG[:ARG] [--workdir DIR] [--config.key=value ...] [--dry-run]

    mobilevitv2 sweep configs/digits.py --dry-run              list the points
    mobilevitv2 sweep configs/digits.py --parallel 2           two at a time, on this machine
    mobilevitv2 sweep configs/digits.py --executor slurm --parallel 8 --sbatch '--gpus=1'
    mobilevitv2 sweep configs/digits.py --executor commands    one command per point
    mobilevitv2 sweep configs/digits.py --results              compare what is finished
"""

_EXECUTORS = ("local", "slurm", "commands")


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv, positional=("config",)):
        return 0
    _check(values)
    experiment = read_experiment(values)
    name = run_name(experiment.path, experiment.arg, experiment.overrides)
    directory = epath.Path(values.workdir or f"runs/sweep-{name}")
    executor = values.executor or "local"
    if executor != "commands" and not is_local(directory):
        raise ConfigError(
            f"--workdir must be on a file system for --executor={executor}, which keeps logs "
            f"there, got {directory}; --executor=commands takes an object store, too"
        )
    runs = plan(experiment.path, experiment.arg, experiment.overrides, directory)

    # Here and not above: loading jax takes seconds, and a mistake in the arguments should not.
    from mobilevitv2_jax.training.sweep.conduct import Sweep

    sweep = Sweep(
        runs,
        directory,
        executor,
        parallel=values.parallel or 1,
        retries=1 if values.retries is None else values.retries,
        sbatch=shlex.split(values.sbatch or ""),
    )
    if values.dry_run:
        sys.stdout.write(sweep.listing())
        return 0
    return sweep.compare() if values.results else sweep.train()


def _check(values: absl_flags.FlagValues) -> None:
    if not values.config:
        raise ConfigError("a config is required, such as: mobilevitv2 sweep configs/digits.py")
    if values.executor not in (None, *_EXECUTORS):
        raise ConfigError(
            f"--executor must be one of {', '.join(_EXECUTORS)}, got {values.executor!r}"
            f"{nearest(values.executor, _EXECUTORS)}"
        )
    for name, least in (("parallel", 1), ("retries", 0)):
        value = values[name].value
        if value is not None and value < least:
            raise ConfigError(f"--{name} must be at least {least}, got {value}")
    if values.sbatch is not None and values.executor != "slurm":
        raise ConfigError("--sbatch goes with --executor=slurm")


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    define_config(values)
    flags.define(values, "workdir", str, "where the sweep lives; default runs/sweep-<config>[-…]")
    flags.define(
        values, "executor", str, "local (default); slurm: an array; commands: prints one per point"
    )
    flags.define(
        values, "parallel", int, "points at a time, on devices and cores of their own; default 1"
    )
    flags.define(values, "retries", int, "how often a point that fails is tried again; default 1")
    flags.define(values, "sbatch", str, "options for sbatch, such as '--gpus=1 --time=4:00:00'")
    flags.define(values, "results", bool, "compare what is finished, and train nothing")
    flags.define(values, "dry_run", bool, "check and list the points, and write nothing")
    return values
