"""A step in training mode against torch: loss, every gradient, and the BatchNorm statistics.

Both sides run in float64 (ours in a process of its own), because in float32 the gradients have no
common value to agree on: torch's own float32 gradients are 2e-4 to 3e-3 away from its float64
ones on these weights, presumably because single ReLUs flip near 0 (ours: 2e-4 to 3e-2).

Tolerance: 1e-8, of a statistic's largest absolute value, and for gradients of
max(|leaf|, 1e-3 * the largest gradient of all): what has a gradient of zero but for
rounding (a bias before a softmax or before another BatchNorm) is measured by the latter.

PyTorch normalises by the biased variance of the batch and feeds the running variance with the
unbiased one, n / (n - 1) times as large; so do we, whereas Flax's own BatchNorm feeds it with the
biased one. At the head's pooled branch, where n is the batch alone, that is no small matter.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from oracle.training_step import STEPS

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-8
SCRIPT = pathlib.Path(__file__).with_name("training_step.py")


@pytest.mark.parametrize("name", STEPS)
def test_loss_gradients_and_statistics_of_a_step_agree_with_the_peer(name, record_property):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), name],
        env={**os.environ, "JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    statistics = {key: x for key, x in errors.items() if ".running_" in key}
    gradients = {k: x for k, x in errors.items() if k not in statistics and k != "loss"}
    for part in ({"loss": errors["loss"]}, gradients, statistics):
        record_property(next(iter(part)), f"{max(part.values()):.1e}")
    assert statistics and len(gradients) > 100
    wrong = {key: x for key, x in errors.items() if not x <= TOLERANCE}
    assert not wrong, wrong
