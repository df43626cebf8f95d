"""Training in bfloat16: as accurate as in float32."""

import pathlib

import pytest

from mobilevitv2_jax.config import load
from mobilevitv2_jax.training import loop, program
from mobilevitv2_jax.training.run_directory import read_results

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "digits.py"

# Of 360 held-out digits; two equally good models differ by about 0.7 % (a standard deviation).
TOLERANCE = 0.015


@pytest.mark.slow
def test_training_in_bfloat16_reaches_the_accuracy_of_float32(
    tmp_path, monkeypatch, record_property
):
    # Tests compile with less effort; these two programs run for minutes.
    options = {**program._CPU_OPTIONS, "xla_backend_optimization_level": "3"}
    monkeypatch.setattr(program, "_CPU_OPTIONS", options)
    top1 = {}
    for dtype in ("float32", "bfloat16"):
        config = load(str(CONFIG), "resolution=32")
        config.model.dtype = dtype
        config.schedule.total = "8 epochs"
        assert loop.train(config, tmp_path / dtype, "python train.py") == 0
        last = loop.Schedule.from_config(config, 1437).steps
        top1[dtype] = read_results(tmp_path / dtype, last)["eval_ema/top1"]
        record_property(dtype, f"{top1[dtype]:.2%}")
    assert top1["float32"] > 0.95
    assert top1["bfloat16"] > top1["float32"] - TOLERANCE, top1
