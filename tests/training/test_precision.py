"""Training in bfloat16: as accurate as in float32."""

import os
import pathlib
import subprocess
import sys

import pytest

from mobilevitv2_jax.training.run_directory import read_results

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = (
    "--config=configs/digits.py:resolution=32",
    "--config.model.width_multiplier=0.25",
    "--config.model.n_attn_blocks=(1, 1, 1)",
    "--config.schedule.total=8 epochs",
)
STEPS = 8 * 23  # 8 epochs of 1,437 digits in batches of 64
# Of 360 held-out digits; two equally good models differ by about 0.7 % (a standard deviation).
TOLERANCE = 0.015


@pytest.mark.slow
def test_training_in_bfloat16_reaches_the_accuracy_of_float32(tmp_path, record_property):
    # Tests compile with less effort; these two programs run for longer than they are compiled.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    top1 = {}
    for dtype in ("float32", "bfloat16"):
        command = [sys.executable, "train.py", *FLAGS, f"--config.model.dtype={dtype}"]
        command += [f"--workdir={tmp_path / dtype}"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        top1[dtype] = read_results(tmp_path / dtype, STEPS)["eval_ema/top1"]
        record_property(dtype, f"{top1[dtype]:.2%}")
    assert top1["float32"] > 0.95
    assert top1["bfloat16"] > top1["float32"] - TOLERANCE, top1
