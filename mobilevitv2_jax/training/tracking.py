"""Weights & Biases, where a run asks for it (`config.log.wandb`)."""

from __future__ import annotations

import hashlib
from typing import Any

import ml_collections
from etils import epath

from mobilevitv2_jax.config import flatten
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.files import absolute


def load_wandb(config: ml_collections.ConfigDict) -> Any:
    """Returns the wandb module if `config.log.wandb` names a project, and None if not.

    Raises:
        ConfigError: if it is not installed.
    """
    if not config.log.wandb:
        return None
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            f"config.log.wandb={config.log.wandb!r} needs wandb: "
            "pip install 'mobilevitv2-jax[wandb]'"
        ) from None
    return wandb


def start_wandb(wandb: Any, config: ml_collections.ConfigDict, directory: epath.Path) -> Any:
    """Starts the run, or continues the one that this run directory has had before."""
    place = str(absolute(directory))
    return wandb.init(
        project=config.log.wandb,
        name=epath.Path(directory).name,
        # The same directory is the same run; "allow" makes it if there is none yet.
        id=hashlib.sha256(place.encode()).hexdigest()[:16],
        resume="allow",
        config=flatten(config),
    )
