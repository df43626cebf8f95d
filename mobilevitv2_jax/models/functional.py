"""Between modules and plain pytrees: a model is a static graph and two flat dicts of arrays.

Parameters and BatchNorm statistics are `{"backbone.stem.convolution.kernel": array, …}`; the
same paths name them in checkpoints, in the table of `weights/names.py` and in error messages.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Graphs:
    """The static part of a model, in training and in evaluation mode."""

    train: nnx.GraphDef
    evaluation: nnx.GraphDef


def _flatten(state: nnx.State) -> Arrays:
    return {
        ".".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }


def _unflatten(arrays: Arrays, kind: type[nnx.Variable]) -> nnx.State:
    def keys(path: str) -> tuple[Any, ...]:
        return tuple(int(key) if key.isdigit() else key for key in path.split("."))

    return nnx.from_flat_state([(keys(path), kind(array)) for path, array in arrays.items()])


def arrays(model: nnx.Module) -> tuple[Arrays, Arrays]:
    """Returns the model's parameters and BatchNorm statistics."""
    _, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    parameters, statistics = map(_flatten, states)
    return parameters, statistics


def split(model: nnx.Module, *, frozen: str = "") -> tuple[Graphs, Arrays, Arrays]:
    """Takes a model apart, once, for both modes; leaves it in evaluation mode.

    The part of it that `frozen` names is in evaluation mode in training, too: without dropout,
    and its BatchNorm takes and keeps the running statistics.
    """
    model.train()
    if frozen:
        getattr(model, frozen).eval()
    train = nnx.split(model)[0]
    model.eval()
    parameters, statistics = arrays(model)
    return Graphs(train, nnx.split(model)[0]), parameters, statistics


def merge(graph: nnx.GraphDef, parameters: Arrays, statistics: Arrays) -> Any:
    """Puts a model together: cheap enough to be called inside every traced function."""
    return nnx.merge(
        graph, _unflatten(parameters, nnx.Param), _unflatten(statistics, nnx.BatchStat)
    )


def update(model: nnx.Module, arrays: Arrays) -> None:
    """Writes arrays into a model in place; paths that are not given keep their values.

    Raises:
        KeyError: for a path that the model does not have.
    """
    kinds = {
        ".".join(map(str, path)): type(variable)
        for path, variable in nnx.to_flat_state(nnx.state(model))
    }
    for kind in (nnx.Param, nnx.BatchStat):
        chosen = {path: array for path, array in arrays.items() if kinds[path] is kind}
        nnx.update(model, _unflatten(chosen, kind))
