"""The arrays of training states and of checkpoints, by path."""

import jax
import numpy as np

from mobilevitv2_jax.training.experiment import prepare
from mobilevitv2_jax.training.run_directory import read_config
from mobilevitv2_jax.weights.checkpoint import Checkpoints


def arrays_of(tree):
    """Returns every leaf by its path."""
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def bytes_of(tree):
    """Returns the bits of every leaf by path, so that NaN equals itself."""
    return {path: array.tobytes() for path, array in arrays_of(tree).items()}


def saved_state(directory, step, config=None):
    """Returns the state of a run's checkpoint; of the run's own config, if none is given."""
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        abstract = prepare(config or read_config(directory)).abstract_state
        return checkpoints.restore(step, abstract)[0]
