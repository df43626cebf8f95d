"""Which checkpoint of a run is evaluated, and what is said where there is none."""

import numpy as np
import pytest
from tiny import tiny_config

from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.training.evaluate import evaluate_run
from mobilevitv2_jax.training.state import TrainState
from mobilevitv2_jax.weights.checkpoint import Checkpoints


def save(directory, metrics):
    """Saves a state of one number, at steps 1, 2, …"""
    number, arrays = np.int32(0), {"x": np.zeros(1, np.float32)}
    state = TrainState(number, arrays, arrays, {}, arrays, arrays, number)
    with Checkpoints(directory / "checkpoints", best_metric="eval_ema/top1") as checkpoints:
        for step, values in enumerate(metrics, start=1):
            checkpoints.save(step, state, {}, values)


def test_without_a_checkpoint_there_is_nothing_to_evaluate_yet(tmp_path):
    with pytest.raises(ConfigError, match="has no checkpoint yet: let the training run"):
        evaluate_run(tiny_config(), tmp_path)
    save(tmp_path, [None])
    (tmp_path / "checkpoints" / "00000001" / "checksums.json").unlink()  # still being written
    with pytest.raises(ConfigError, match="has no checkpoint yet: let the training run"):
        evaluate_run(tiny_config(), tmp_path)


def test_without_an_evaluation_there_is_no_best(tmp_path):
    save(tmp_path, [None, None])
    with pytest.raises(ConfigError, match="no checkpoint of .* has been evaluated .* --best"):
        evaluate_run(tiny_config(), tmp_path, best=True)
    with pytest.raises(ConfigError, match="keeps no checkpoint of step 7; it has 1, 2"):
        evaluate_run(tiny_config(), tmp_path, step=7)
