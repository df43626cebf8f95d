"""The run directory: what it holds, and whether it is ours to write to."""

from __future__ import annotations

import json
from collections.abc import Mapping

import ml_collections
from etils import epath

from mobilevitv2_jax.config import allowed_changes, differences, from_json, to_json
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.files import write_whole

_FINISHED = "finished.json"


def read_config(directory: epath.PathLike) -> ml_collections.ConfigDict:
    """Returns the config of the run in `directory`.

    Raises:
        ConfigError: if there is no run, or its config cannot be read.
    """
    path = _reach(directory) / "config.json"
    if not path.exists():
        raise ConfigError(
            f"{directory} is not a run directory: it has no config.json. "
            "Train first, or pass the --workdir that the training printed"
        )
    return from_json(path.read_text(), str(path))


def open_run(config: ml_collections.ConfigDict, directory: epath.PathLike) -> epath.Path:
    """Makes the run directory, or checks that the one that exists belongs to this config.

    Raises:
        ConfigError: if it cannot be written, holds something else, or belongs to another
            config: the fields that differ are named.
    """
    path = _reach(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if (path / "config.json").exists():
            check_same(read_config(path), config, path)
        elif any(path.iterdir()):
            raise ConfigError(
                f"workdir {path} is not empty and is not a run directory: choose another"
            )
        text = to_json(config)
        if not (path / "config.json").exists() or (path / "config.json").read_text() != text:
            write_whole(path / "config.json", text)
    except OSError as error:
        raise ConfigError(
            f"workdir {path} cannot be written ({error.strerror or error}): choose another "
            "with --workdir"
        ) from None
    return path


def _reach(directory: epath.PathLike) -> epath.Path:
    path = epath.Path(directory)
    try:
        path.exists()
    except ImportError as error:
        raise ConfigError(
            f"workdir {path} needs a library that is not installed ({error}): "
            "pip install 'mobilevitv2-jax[gcs]' for gs://"
        ) from None
    return path


def check_same(
    saved: ml_collections.ConfigDict, wanted: ml_collections.ConfigDict, path: epath.Path
) -> None:
    """Checks that the run in a directory, with its `saved` config, is the one that is wanted.

    Raises:
        ConfigError: if not, naming the fields that differ.
    """
    changed = differences(saved, wanted)
    if changed:
        raise ConfigError(
            f"workdir {path} belongs to a run with another config: {'; '.join(changed)}. "
            "Choose another --workdir, or name what may change in "
            "--config.checkpoint.allow_changes=KEY,…"
        )


def check_data(trained_on: str, found: str, config: ml_collections.ConfigDict) -> None:
    """Checks that a run goes on with the data set that it began with.

    Raises:
        ConfigError: if it does not, and `checkpoint.allow_changes` does not name `data`.
    """
    if trained_on != found and "data" not in allowed_changes(config):
        raise ConfigError(
            f"this run was trained on {trained_on}, and the data set is now {found}: bring back "
            "the former, choose another --workdir, or allow it by "
            "--config.checkpoint.allow_changes=data"
        )


def write_results(directory: epath.PathLike, step: int, metrics: Mapping[str, float]) -> None:
    """Adds the metrics of an evaluated step to `eval.json`; those of the same name are replaced."""
    path = epath.Path(directory) / "eval.json"
    results = _read_all_results(path)
    results[str(step)] = {**results.get(str(step), {}), **metrics}
    write_whole(path, json.dumps(results, indent=2) + "\n")


def read_results(directory: epath.PathLike, step: int) -> dict[str, float] | None:
    """Returns the metrics of an evaluated step, or None."""
    return _read_all_results(epath.Path(directory) / "eval.json").get(str(step))


def mark_finished(directory: epath.PathLike, step: int) -> None:
    """Notes that a run has left all that it promises at its last step."""
    write_whole(epath.Path(directory) / _FINISHED, json.dumps({"step": step}) + "\n")


def is_finished(directory: epath.PathLike, step: int) -> bool:
    """Returns whether a run whose last step this is has left all that it promises.

    Results of the step do not tell: `eval.py` writes them, too, before the run has ended.
    """
    path = epath.Path(directory) / _FINISHED
    return path.exists() and json.loads(path.read_text())["step"] == step


def _read_all_results(path: epath.Path) -> dict[str, dict[str, float]]:
    return json.loads(path.read_text()) if path.exists() else {}
