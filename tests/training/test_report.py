"""The texts of a run."""

import pytest
from etils import epath
from tiny import tiny_config

from mobilevitv2_jax.training import report, run_directory


@pytest.mark.parametrize(
    ("command", "longer"),
    [
        ("python train.py", "python train.py --config.schedule.total=12steps"),
        (
            "python train.py --config.schedule.total='6 steps' --config.seed=1",
            "python train.py --config.seed=1 --config.schedule.total=12steps",
        ),
        (
            "python train.py --config.schedule.total 6steps --workdir 'my runs/a' --config.seed 1",
            "python train.py --config.seed 1 --config.schedule.total=12steps "
            "'--workdir={directory}-longer'",
        ),
        (
            "python train.py --workdir='my runs/a'",
            "python train.py --config.schedule.total=12steps '--workdir={directory}-longer'",
        ),
    ],
)
def test_the_command_to_train_longer_says_everything_once(tmp_path, command, longer):
    directory = epath.Path(tmp_path) / "my runs" / "a"
    directory.mkdir(parents=True)
    run_directory.write_results(directory, 6, {"eval/top1": 0.5, "eval_ema/top1": 0.75})
    said = report.finished(directory, tiny_config(), 6, 6, command)
    assert said.splitlines()[-1] == f"  train longer  {longer.format(directory=directory)}"
    assert f"python eval.py --workdir '{directory}'" in said


def test_a_run_says_only_what_it_has(tmp_path):
    config = tiny_config({"log.tensorboard": False})
    run_directory.write_results(tmp_path, 6, {"eval/top1": 0.5, "eval_ema/top1": 0.75})
    said = report.finished(epath.Path(tmp_path), config, 6, None, "python train.py")
    assert "(none has been evaluated)" in said and "TensorBoard" not in said
