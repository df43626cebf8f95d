"""The experiment that a command line asks for: a config file, its argument and overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import flags as absl_flags

from mobilevitv2_jax.cli import flags
from mobilevitv2_jax.config import default_config, load, override

DEFAULT_CONFIG = "configs/digits.py"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What `--config FILE[:ARG] --config.key=value …` says.

    Attributes:
        path: the config file, as it was given.
        arg: what stood after the colon.
        config: the resolved config, locked.
        overrides: the values that were set on the command line, by dotted key.
    """

    path: str
    arg: str
    config: ml_collections.ConfigDict
    overrides: Mapping[str, Any]


def define_config(values: absl_flags.FlagValues) -> None:
    """Adds `--config`, and `--config.group.key` for every key of the schema.

    The schema has every key with its type, so the flags exist before a config file is read: the
    order of the arguments does not matter.
    """
    flags.define(values, flags.CONFIG, str, f"config file[:argument]; default {DEFAULT_CONFIG}")
    _define_keys(values, default_config(), flags.CONFIG)


def _define_keys(
    values: absl_flags.FlagValues, group: ml_collections.ConfigDict, prefix: str
) -> None:
    for key, value in group.items():
        name = f"{prefix}.{key}"
        if isinstance(value, ml_collections.ConfigDict):
            _define_keys(values, value, name)
        else:
            kind, optional = group.get_type(key), value is None
            flags.define(values, name, kind, example=value, optional=optional)


def read_experiment(values: absl_flags.FlagValues) -> Experiment:
    """Returns the experiment of parsed flags.

    Raises:
        ConfigError: if the config file cannot be used.
    """
    given = flags.given(values)
    path, _, arg = given.get(flags.CONFIG, DEFAULT_CONFIG).partition(":")
    prefix = flags.CONFIG + "."
    overrides = {
        name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)
    }
    config = load(path, arg)
    override(config, overrides)
    return Experiment(path, arg, config, overrides)
