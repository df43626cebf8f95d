"""Pictures of a sweep: the curves of all runs, and accuracy against what models cost."""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath
from matplotlib import colormaps
from matplotlib.axes import Axes

from mobilevitv2_jax.evaluation.figures import new_figure, save_figure
from mobilevitv2_jax.training.logging import read_metrics
from mobilevitv2_jax.training.sweep.results import COSTS, Group, Result

_STYLES = ("-", "--", ":", "-.")  # once the ten colours are used up


def _look(index: int) -> tuple[tuple[float, ...], str]:
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    return colours[index % len(colours)], _STYLES[index // len(colours) % len(_STYLES)]


def save_curves(path: epath.PathLike, groups: Sequence[Group], metric: str) -> None:
    """Draws the training loss and the held-out metric of every run; a group has one colour."""
    figure = new_figure(13, 5)
    panels = figure.subplots(1, 2)
    for axes, (name, scale) in zip(panels, (("train/loss", 1), (metric, 100)), strict=True):
        for index, group in enumerate(groups):
            colour, style = _look(index)
            for result in group.results:
                steps, values = _curve(result, name)
                # No line is drawn through a single point, as of a run that was evaluated once.
                marker = "o" if len(steps) == 1 else None
                axes.plot(
                    steps,
                    [scale * value for value in values],
                    style,
                    color=colour,
                    marker=marker,
                    linewidth=1.2,
                    alpha=0.8,
                    label=group.name if result is group.results[0] else None,
                )
        axes.set_xlabel("step")
        axes.set_ylabel(name if scale == 1 else f"{name} (%)")
        axes.grid(alpha=0.3)
    panels[-1].legend(fontsize=9)
    save_figure(figure, path)


def _curve(result: Result, name: str) -> tuple[list[int], list[float]]:
    lines = read_metrics(result.run.directory / "metrics.jsonl")
    # A value that is not finite stands there as a word.
    found = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), float)]
    return [step for step, _ in found], [value for _, value in found]


def save_accuracy(path: epath.PathLike, groups: Sequence[Group], metric: str) -> None:
    """Draws the metric against parameters, multiply-accumulates and latency.

    Every run is a dot, every group its mean with the deviation over seeds. The line joins the
    groups that no other one is both cheaper and better than: the Pareto front.
    """
    shown = [group for group in groups if group.results]
    figure = new_figure(15, 5)
    panels = figure.subplots(1, len(COSTS), sharey=True)
    for axes, cost in zip(panels, COSTS, strict=True):
        _draw_accuracy(axes, shown, metric, cost)
    panels[0].set_ylabel(f"{metric} (%)")
    devices = sorted({group.results[0].cost["device"] for group in shown})
    panels[-1].set_xlabel(f"{COSTS['latency'][0]} of one image, {', '.join(devices)}")
    panels[-1].legend(fontsize=9, loc="lower right")
    save_figure(figure, path)


def _draw_accuracy(axes: Axes, groups: Sequence[Group], metric: str, cost: str) -> None:
    label, unit = COSTS[cost]
    places = {
        group.name: (group.results[0].cost[cost] / unit, 100 * group.mean(metric))
        for group in groups
    }
    front = pareto_front(list(places.values()))
    axes.plot(*zip(*front, strict=True), color="0.6", linewidth=1, zorder=1)
    for index, group in enumerate(groups):
        colour, _ = _look(index)
        x, y = places[group.name]
        deviation = group.deviation(metric)
        axes.scatter(
            [x] * len(group.results),
            [100 * value for value in group.values(metric)],
            s=14,
            color=colour,
            alpha=0.5,
        )
        axes.errorbar(
            x,
            y,
            yerr=None if deviation is None else 100 * deviation,
            fmt="o",
            markersize=8,
            capsize=4,
            color=colour,
            label=group.name,
        )
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the (cost, value) that no other one beats in both, from cheap to dear."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front
