"""What the kinds of `mobilevitv2 prepare` have in common: options, progress, report."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping

from absl import flags as absl_flags

from mobilevitv2_jax.cli import flags
from mobilevitv2_jax.data.array_record import (
    REPORT,
    SHARD_BYTES,
    Progress,
    SplitReport,
    write,
)
from mobilevitv2_jax.data.examples import Description, Examples
from mobilevitv2_jax.data.parallel import cores
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.training.logging import format_seconds

_EVERY = 10.0  # seconds between lines of progress
_SHOWN = 5  # names of changed or damaged examples on the terminal; the report has all


@dataclasses.dataclass(frozen=True)
class Output:
    """Where and how a data set is written.

    Attributes:
        data_dir: where data sets live.
        processes: how many work.
        shard_bytes: size of a file.
    """

    data_dir: str
    processes: int
    shard_bytes: int


def define_output(values: absl_flags.FlagValues) -> None:
    """Adds the options that every kind has."""
    flags.define(values, "out", str, "where data sets live: this one goes to OUT/NAME/VERSION")
    flags.define(
        values, "processes", int, "how many work; default the number of cores, 0 takes this one"
    )
    megabytes = SHARD_BYTES // 2**20
    flags.define(values, "shard_mb", int, f"size of a file in MiB; default {megabytes}")


def read_output(values: absl_flags.FlagValues) -> Output:
    """Returns what the options of `define_output` say.

    Raises:
        ConfigError: if one is missing or out of range.
    """
    require(values, out="where data sets live, such as ~/tensorflow_datasets")
    processes = cores() if values.processes is None else values.processes
    if processes < 0:
        raise ConfigError(f"--processes must be at least 0, got {processes}")
    megabytes = SHARD_BYTES // 2**20 if values.shard_mb is None else values.shard_mb
    if megabytes < 1:
        raise ConfigError(f"--shard-mb must be at least 1, got {megabytes}")
    return Output(os.path.expanduser(values.out), processes, megabytes * 2**20)


def prepare(
    output: Output,
    description: Description,
    splits: Mapping[str, Examples],
    accept: Callable[[Mapping[str, SplitReport]], None] = lambda reports: None,
) -> None:
    """Writes a data set, and tells how it goes.

    Args:
        output: where and how.
        description: the data set.
        splits: its examples.
        accept: sees what became of the splits before the set counts as finished.
    """
    for split, examples in splits.items():
        say(f"{split}: {len(examples):,} examples, {examples.num_bytes / 1e9:.1f} GB")
    say(f"writing to {output.data_dir} in {output.processes or 1} processes")
    directory, reports = write(
        description,
        splits,
        output.data_dir,
        processes=output.processes,
        tell=ProgressLines(say),
        accept=accept,
        shard_bytes=output.shard_bytes,
    )
    for split, report in reports.items():
        say(_summary(split, report))
    say(f"prepared {directory}; {REPORT} in it tells what became of each split")


def require(values: absl_flags.FlagValues, **meanings: str) -> None:
    """Checks that options are given.

    Args:
        values: parsed options.
        **meanings: what each of them is.

    Raises:
        ConfigError: for the first that is not.
    """
    for name, meaning in meanings.items():
        if not values[name].value:
            raise ConfigError(f"--{name.replace('_', '-')} is required: {meaning}")


def say(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class ProgressLines:
    """Tells progress: a line when there is something new, but not too often."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._last = tell, 0.0

    def __call__(self, progress: Progress) -> None:
        """Takes the progress, and may tell it."""
        done = progress.shards == progress.all_shards
        if not progress.written:
            if progress.shards:
                self._tell(
                    f"going on: {progress.shards:,} of {progress.all_shards:,} files were written"
                )
        elif done or progress.seconds - self._last >= _EVERY:
            self._last = progress.seconds
            self._tell(_line(progress))


def _line(progress: Progress) -> str:
    rate = progress.written / max(progress.seconds, 1e-9)
    return (
        f"{progress.examples / progress.all_examples:4.0%}  "
        f"{progress.shards:,} of {progress.all_shards:,} files, "
        f"{progress.examples:,} of {progress.all_examples:,} examples, {rate:,.0f} a second, "
        f"{format_seconds(progress.remaining)} left"
    )


def _summary(split: str, report: SplitReport) -> str:
    text = (
        f"{split}: {report.examples:,} examples, {report.num_bytes / 1e9:.1f} GB "
        f"in {len(report.lengths):,} files"
    )
    for what, lines in (("changed", report.remarks), ("left out", report.corrupt)):
        if lines:
            shown = "; ".join(lines[:_SHOWN]) + "; ..." * (len(lines) > _SHOWN)
            text += f"\n  {len(lines):,} {what}: {shown}"
    return text
