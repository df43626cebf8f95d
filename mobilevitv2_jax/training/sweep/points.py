"""The points of a sweep: what a config's `sweep()` returns, and the runs that follow from it.

    from mobilevitv2_jax.training.sweep.points import axis, product

    def sweep():
        return product(axis("arg.width", (0.5, 0.75, 1.0)), axis("seed", range(2)))

This module loads no JAX: configs import it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from etils import epath

from mobilevitv2_jax.config import call, find_file, load, override
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.validation import validate

ARGUMENT = "arg."
"""Begins the changes that are made through the config's argument instead of a key."""

TRAIN = (sys.executable, "-u", "-m", "mobilevitv2_jax.cli.main", "train")
"""The command that trains one point, wherever the sweep itself was started from."""

_NOT_IN_NAMES = r"[^\w=.,+-]"


@dataclasses.dataclass(frozen=True)
class Point:
    """A named set of changes to a config.

    Attributes:
        name: also that of its run directory.
        changes: values by dotted key, such as "optimizer.weight_decay"; with "arg." in front, an
            argument of the config file.
    """

    name: str
    changes: Mapping[str, Any]


def axis(key: str, values: Iterable[Any]) -> list[Point]:
    """Returns a point for each value of one key, such as "seed=0" and "seed=1"."""
    short = key.rpartition(".")[2]
    return [Point(re.sub(_NOT_IN_NAMES, "_", f"{short}={value}"), {key: value}) for value in values]


def product(*axes: Iterable[Point]) -> list[Point]:
    """Returns every combination of a point of each axis; the last axis varies fastest."""
    return [_join(points) for points in itertools.product(*axes)]


def together(*axes: Iterable[Point]) -> list[Point]:
    """Joins the first points of all axes, the second ones, and so on.

    Raises:
        ConfigError: if the axes differ in length.
    """
    columns = [list(points) for points in axes]
    lengths = [len(points) for points in columns]
    if len(set(lengths)) > 1:
        raise ConfigError(f"together() needs axes of one length, got {lengths}")
    return [_join(points) for points in zip(*columns, strict=True)]


def _join(points: Iterable[Point]) -> Point:
    name: list[str] = []
    changes: dict[str, Any] = {}
    for point in points:
        for key in point.changes.keys() & changes.keys():
            raise ConfigError(f"two axes of the sweep set {key!r}: leave out one of them")
        name.append(point.name)
        changes.update(point.changes)
    return Point(",".join(name), changes)


@dataclasses.dataclass(frozen=True)
class Run:
    """A point with all that is needed to train it.

    Attributes:
        point: the changes.
        config: the resolved config.
        directory: the run directory.
        options: of the training command.
    """

    point: Point
    config: ml_collections.ConfigDict
    directory: epath.Path
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """The point's name."""
        return self.point.name

    @property
    def group(self) -> str:
        """The name without the seed: runs of one group differ in nothing else."""
        seed = f"seed={self.point.changes.get('seed')}"
        parts = [part for part in self.name.split(",") if part != seed]
        return ",".join(parts) or "all seeds"


def plan(path: str, arg: str, overrides: Mapping[str, Any], directory: epath.PathLike) -> list[Run]:
    """Returns the runs of a config's sweep, each resolved and validated.

    Args:
        path: the config file.
        arg: its argument, to which the points add theirs.
        overrides: values of all points, by dotted key.
        directory: of the sweep; a run directory is `runs/<name>` in it.

    Raises:
        ConfigError: if the file has no usable `sweep()`, or for the first point whose values
            cannot be used.
    """
    runs = []
    for point in load_points(path):
        try:
            runs.append(_resolve(point, path, arg, overrides, epath.Path(directory)))
        except ConfigError as error:
            raise ConfigError(f"point {point.name} of the sweep: {error}") from None
    metrics = sorted({run.config.checkpoint.best_metric for run in runs})
    if len(metrics) > 1:
        raise ConfigError(
            "the points of a sweep must have one config.checkpoint.best_metric, by which they are "
            f"compared, got {', '.join(metrics)}"
        )
    return runs


def load_points(path: str) -> list[Point]:
    """Returns the points that a config file's `sweep()` returns or yields.

    Raises:
        ConfigError: if there are none, or they are not distinct points.
    """
    file = find_file(path)
    points = call(file, "sweep")
    if not isinstance(points, list | tuple) or not all(isinstance(p, Point) for p in points):
        raise ConfigError(
            f"sweep() of {file} must return points, made by axis(), product(), together() or "
            f"Point(name, changes), got {points!r}"
        )
    if not points:
        raise ConfigError(f"sweep() of {file} must return at least one point, got none")
    names = [point.name for point in points]
    for name in names:
        if not name or name.startswith(".") or re.search(_NOT_IN_NAMES, name):
            raise ConfigError(
                f"the name of a point must be letters, digits and any of =.,+-_ (no dot in front), "
                f"got {name!r}"
            )
        if names.count(name) > 1:
            raise ConfigError(f"sweep() of {file} has {names.count(name)} points named {name!r}")
    return list(points)


def _resolve(
    point: Point, path: str, arg: str, overrides: Mapping[str, Any], directory: epath.Path
) -> Run:
    for key in point.changes.keys() & overrides.keys():
        raise ConfigError(f"--config.{key} is what the sweep varies: leave it out")
    arguments = {
        key.removeprefix(ARGUMENT): value
        for key, value in point.changes.items()
        if key.startswith(ARGUMENT)
    }
    added = [f"{name}={_text(value)}" for name, value in arguments.items()]
    full_arg = ",".join(filter(None, (arg, *added)))
    keys = {key: value for key, value in point.changes.items() if not key.startswith(ARGUMENT)}
    changes = {**overrides, **keys}

    config = load(path, full_arg)
    override(config, changes)
    validate(config)
    place = directory / "runs" / point.name
    words = ["--config", f"{path}:{full_arg}" if full_arg else path, "--workdir", str(place)]
    words += [f"--config.{key}={_text(value)}" for key, value in changes.items()]
    return Run(point, config, place, tuple(words))


def _text(value: Any) -> str:
    """Returns the words for a value on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(tuple(value) if isinstance(value, list) else value)
