"""What a sweep has found: a table with means over seeds, CSV, and pictures."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from rich import box
from rich.console import Console
from rich.table import Table

from mobilevitv2_jax.config import flatten, to_json
from mobilevitv2_jax.files import write_whole
from mobilevitv2_jax.training import run_directory
from mobilevitv2_jax.training.run_directory import read_config, read_results
from mobilevitv2_jax.training.sweep.points import Run

COSTS = {
    "parameters": ("parameters (M)", 1e6),
    "macs": ("MACs (M)", 1e6),
    "latency": ("latency (ms)", 1.0),
}
"""What a model costs: the name of each figure in tables and pictures, and what it is divided by."""

_WIDTH = 500  # columns that a table may take: its text goes into files, too


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished point.

    Attributes:
        run: the point.
        steps: length of its training.
        metrics: those of its last step.
        cost: "parameters", "macs", "latency" in milliseconds, and "device", where measured.
    """

    run: Run
    steps: int
    metrics: Mapping[str, float]
    cost: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Group:
    """Points that differ in the seed alone.

    Attributes:
        name: of the points, without the seed.
        results: the finished ones.
        wanted: how many there are, finished or not.
    """

    name: str
    results: tuple[Result, ...]
    wanted: int

    def values(self, metric: str) -> list[float]:
        """Returns a metric of every finished point."""
        return [result.metrics[metric] for result in self.results]

    def mean(self, metric: str) -> float:
        """Returns a metric's mean over the seeds."""
        return statistics.fmean(self.values(metric))

    def deviation(self, metric: str) -> float | None:
        """Returns the standard deviation over the seeds (divided by n - 1); None for one seed."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None


def is_finished(run: Run, steps: int) -> bool:
    """Returns whether a point has been trained to its end, with its results."""
    return run_directory.is_finished(run.directory, steps)


def model_key(run: Run) -> str:
    """Returns what is the same for finished points whose models cost the same."""
    # Not the point's own config: the weights that a run begins with may have changed it.
    values = flatten(read_config(run.directory))
    keys = [key for key in values if key.startswith("model.")]
    keys += ["task", "eval.crop", "data.source", "data.directory"]  # the classes come with the data
    text = json.dumps({key: values[key] for key in keys}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def models(runs: Sequence[Run]) -> dict[str, str]:
    """Returns the config of one finished run for every distinct model, as text, by its key."""
    return {model_key(run): to_json(read_config(run.directory)) for run in runs}


def collect(
    runs: Sequence[Run], steps: Mapping[str, int], costs: Mapping[str, Mapping[str, Any]]
) -> list[Group]:
    """Returns the finished points by group, in the order of the points.

    Args:
        runs: all points.
        steps: the length of each, by name.
        costs: of the models, by key.
    """
    found: dict[str, list[Result]] = {run.group: [] for run in runs}
    for run in runs:
        if is_finished(run, steps[run.name]):
            metrics = read_results(run.directory, steps[run.name]) or {}
            cost = costs.get(model_key(run), {})
            found[run.group].append(Result(run, steps[run.name], metrics, cost))
    wanted = [run.group for run in runs]
    return [Group(name, tuple(results), wanted.count(name)) for name, results in found.items()]


def render(groups: Sequence[Group], metric: str) -> str:
    """Returns the table of all groups: mean and deviation over seeds, and what models cost."""
    raw = metric.replace("eval_ema", "eval")
    metrics = list(dict.fromkeys((metric, raw)))
    table = Table("point", box=box.SIMPLE_HEAD)
    for name in ("seeds", *metrics, *(name for name, _ in COSTS.values())):
        table.add_column(name, justify="right")
    for group in groups:
        seeds = f"{len(group.results)}"
        if len(group.results) < group.wanted:
            seeds += f" of {group.wanted}"
        cells = [""] * (len(metrics) + len(COSTS))
        if group.results:
            cells = [_spread(group, name) for name in metrics]
            cells += [_cost(group.results[0].cost, name) for name in COSTS]
        table.add_row(group.name, seeds, *cells)
    return "\n".join([as_text(table), "", *_notes(groups)])


def as_text(table: Table) -> str:
    """Returns the lines of a table, however wide."""
    buffer = io.StringIO()
    Console(file=buffer, width=_WIDTH).print(table)
    lines = (line.rstrip() for line in buffer.getvalue().splitlines())
    return "\n".join(filter(None, lines))


def _spread(group: Group, metric: str) -> str:
    mean, deviation = group.mean(metric), group.deviation(metric)
    return f"{mean:.2%}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _cost(cost: Mapping[str, Any], name: str) -> str:
    return f"{cost[name] / COSTS[name][1]:.2f}" if name in cost else ""


def _notes(groups: Sequence[Group]) -> list[str]:
    notes = ["Of the last step; ± is the standard deviation over seeds, in percentage points."]
    devices = {r.cost["device"] for group in groups for r in group.results if "device" in r.cost}
    if devices:
        notes.append(
            "Latency: one forward pass of one image, the median of 50, on one device "
            f"({', '.join(sorted(devices))})."
        )
    return notes


def to_csv(groups: Sequence[Group]) -> str:
    """Returns one row per finished point: its changes, what its model costs, its metrics."""
    results = [result for group in groups for result in group.results]
    rows = [
        {
            "point": result.run.name,
            "group": result.run.group,
            **result.run.point.changes,
            "steps": result.steps,
            **result.cost,
            **dict(sorted(result.metrics.items())),
            "directory": str(result.run.directory),
        }
        for result in results
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read_costs(directory: epath.PathLike) -> dict[str, dict[str, Any]]:
    """Returns what has been measured of the models, by key."""
    path = epath.Path(directory) / "costs.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_costs(directory: epath.PathLike, costs: Mapping[str, Mapping[str, Any]]) -> None:
    """Keeps what has been measured, so that it is measured once."""
    text = json.dumps(costs, indent=2, sort_keys=True) + "\n"
    write_whole(epath.Path(directory) / "costs.json", text)
