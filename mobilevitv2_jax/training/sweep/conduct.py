"""A sweep from its points to its results, whoever trains the points."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shlex
from collections.abc import Sequence

from etils import epath
from rich import box
from rich.markup import escape
from rich.table import Table

from mobilevitv2_jax.config import to_json
from mobilevitv2_jax.errors import UserError
from mobilevitv2_jax.files import write_whole
from mobilevitv2_jax.training.logging import say
from mobilevitv2_jax.training.sweep import devices, local, plots, results, slurm
from mobilevitv2_jax.training.sweep.examination import examine, in_own_process, measure
from mobilevitv2_jax.training.sweep.points import Run


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        runs: its points.
        directory: where it lives: run directories, logs and results.
        executor: who trains: "local", "slurm", or "commands", which leaves it to others.
        parallel: how many points at a time.
        retries: how often a point that fails is tried again.
        sbatch: options for sbatch.
    """

    runs: Sequence[Run]
    directory: epath.Path
    executor: str
    parallel: int
    retries: int
    sbatch: Sequence[str]

    @functools.cached_property
    def _examined(self) -> tuple[devices.Host, dict[str, int]]:
        """This machine, and the steps of each point: known only if every point can run."""
        points = {run.name: (to_json(run.config), str(run.directory)) for run in self.runs}
        return in_own_process(examine, points, self.parallel if self.executor == "local" else None)

    @property
    def _steps(self) -> dict[str, int]:
        return self._examined[1]

    def _finished(self, run: Run) -> bool:
        return results.is_finished(run, self._steps[run.name])

    def listing(self) -> str:
        """Returns the points, what they change, and where they stand.

        Raises:
            ConfigError: for the first point that cannot run.
        """
        keys = list(dict.fromkeys(key for run in self.runs for key in run.point.changes))
        table = Table("point", *keys, "steps", "state", box=box.SIMPLE_HEAD)
        for run in self.runs:
            changes = [str(run.point.changes.get(key, "")) for key in keys]
            begun = "begun" if (run.directory / "config.json").exists() else "new"
            state = "finished" if self._finished(run) else begun
            cells = map(escape, (run.name, *changes))
            table.add_row(*cells, str(self._steps[run.name]), state)
        return (
            f"{results.as_text(table)}\n\n{len(self.runs)} points, each would be trained in "
            f"{self.directory / 'runs'}; nothing was written\n"
        )

    def train(self) -> int:
        """Trains what is not finished; with nothing left to train, compares the points.

        Returns:
            The exit status: 0, 1 if points have failed, 75 after SIGTERM, 130 after Ctrl-C.

        Raises:
            ConfigError: before anything is trained, for the first point that cannot run.
        """
        unfinished = [run for run in self.runs if not self._finished(run)]
        if not unfinished:
            return self.compare()
        if self.executor == "commands":
            for run in unfinished:
                say(shlex.join(["mobilevitv2", "train", *run.options]))
            return 0
        directory = pathlib.Path(self.directory)
        directory.mkdir(parents=True, exist_ok=True)
        return (self._submit if self.executor == "slurm" else self._train_here)(
            unfinished, directory
        )

    def _submit(self, runs: Sequence[Run], directory: pathlib.Path) -> int:
        text = slurm.script(runs, directory, self.parallel, self.retries)
        job = slurm.submit(text, directory, self.sbatch)
        say(
            f"submitted {directory / slurm.SCRIPT} as job {job}: {len(runs)} points, "
            f"{self.parallel} at a time. The same command again submits what is left, and compares "
            "the points when nothing is"
        )
        return 0

    def _train_here(self, runs: Sequence[Run], directory: pathlib.Path) -> int:
        host, steps = self._examined
        slots = devices.make_slots(host, self.parallel, os.environ, devices.own_cores())
        logs = directory / "logs"
        jobs = [local.Job(run, steps[run.name], logs / f"{run.name}.log") for run in runs]
        status = local.train_points(jobs, slots, self.retries, directory / "lock")
        if status in (0, 1) and any(map(self._finished, self.runs)):
            self.compare()
        failures = local.failures(jobs)
        if failures:
            say(failures)
        return status

    def compare(self) -> int:
        """Writes and prints the results of the points that are finished.

        Returns:
            The exit status, 0.

        Raises:
            UserError: if there are none.
        """
        finished = list(filter(self._finished, self.runs))
        if not finished:
            raise UserError(f"no point of {self.directory} is finished yet")
        costs = results.read_costs(self.directory)
        missing = {key: text for key, text in results.models(finished).items() if key not in costs}
        if missing:
            say(f"measuring the latency of {len(missing)} models")
            costs |= in_own_process(measure, missing)
            results.write_costs(self.directory, costs)
        groups = results.collect(self.runs, self._steps, costs)
        metric = self.runs[0].config.checkpoint.best_metric
        text = results.render(groups, metric)
        write_whole(self.directory / "results.txt", text + "\n")
        write_whole(self.directory / "results.csv", results.to_csv(groups))
        plots.save_curves(self.directory / "curves.png", groups, metric)
        plots.save_accuracy(self.directory / "accuracy.png", groups, metric)
        names = ("results.txt", "results.csv", "curves.png", "accuracy.png")
        say(f"{text}\n\n{self.directory}: {', '.join(names)}")
        return 0
