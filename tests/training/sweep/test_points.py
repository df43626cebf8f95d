"""The points of a sweep, and the runs that follow from them."""

import pytest

from mobilevitv2_jax.cli import flags
from mobilevitv2_jax.cli.experiment import define_config, read_experiment
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.training.sweep.points import Point, axis, plan, product, together

HEAD = """
from mobilevitv2_jax.config import default_config, parse_arg
from mobilevitv2_jax.training.sweep.points import Point, axis, product, together

def get_config(arg=""):
    config = default_config()
    config.model.width_multiplier = parse_arg(arg, width=0.5).width
    return config.lock()

def sweep():
"""


@pytest.fixture
def write(tmp_path):
    """Writes a config whose `sweep()` has the given body, and returns its path."""

    def write_config(body):
        file = tmp_path / "mine.py"
        file.write_text(HEAD + "    " + body + "\n")
        return str(file)

    return write_config


def test_an_axis_has_one_named_point_for_each_value():
    assert axis("schedule.learning_rate", (1e-3, 0.01)) == [
        Point("learning_rate=0.001", {"schedule.learning_rate": 1e-3}),
        Point("learning_rate=0.01", {"schedule.learning_rate": 0.01}),
    ]
    assert axis("schedule.total", ["2 epochs"])[0].name == "total=2_epochs"


def test_a_product_has_every_combination_and_the_last_axis_varies_fastest():
    points = product(axis("arg.width", (0.5, 1.0)), axis("seed", range(2)))
    assert [point.name for point in points] == [
        "width=0.5,seed=0",
        "width=0.5,seed=1",
        "width=1.0,seed=0",
        "width=1.0,seed=1",
    ]
    assert points[2].changes == {"arg.width": 1.0, "seed": 0}


def test_together_joins_axes_point_by_point():
    points = together(axis("arg.width", (0.5, 1.0)), axis("optimizer.weight_decay", (0.004, 0.01)))
    assert [point.changes for point in points] == [
        {"arg.width": 0.5, "optimizer.weight_decay": 0.004},
        {"arg.width": 1.0, "optimizer.weight_decay": 0.01},
    ]
    with pytest.raises(ConfigError, match=r"axes of one length, got \[2, 1\]"):
        together(axis("seed", (0, 1)), axis("arg.width", (1.0,)))


def test_two_axes_of_one_key_are_refused():
    with pytest.raises(ConfigError, match="two axes of the sweep set 'seed'"):
        product(axis("seed", (0, 1)), axis("seed", (2,)))


def test_the_options_of_a_run_give_its_config_again(write, tmp_path):
    path = write(
        'yield Point("a", {"arg.width": 0.75, "augment.scale": (0.2, 1.0), "seed": 3,'
        ' "log.tensorboard": False, "model.num_labels": None, "log.wandb": "a b"})'
    )
    overrides = {"schedule.total": "3 epochs", "init.pretrained": "some/weights"}
    (run,) = plan(path, "width=2.0", overrides, tmp_path)
    assert run.config.model.width_multiplier == 0.75
    assert run.config.seed == 3 and run.config.schedule.total == "3 epochs"
    assert str(run.directory) == str(tmp_path / "runs" / "a")

    values = flags.new()
    define_config(values)
    flags.define(values, "workdir", str)
    flags.parse(values, run.options)
    assert read_experiment(values).config == run.config
    assert values.workdir == str(run.directory)


def test_a_group_is_named_without_the_seed(write, tmp_path):
    path = write('return product(axis("seed", (0, 1)), axis("arg.width", (0.5, 1.0)))')
    groups = [run.group for run in plan(path, "", {}, tmp_path)]
    assert groups == ["width=0.5", "width=1.0"] * 2
    path = write('return axis("seed", (0, 1))')
    assert {run.group for run in plan(path, "", {}, tmp_path)} == {"all seeds"}


MISTAKES = {
    "return []": "at least one point, got none",
    "return [1]": "must return points",
    "return 3": "must return points, made by axis",
    "return 1 / 0": "mine.py:11 failed with ZeroDivisionError",
    'yield Point("a b", {})': "the name of a point must be letters, digits",
    'yield Point("../a", {})': "the name of a point must be letters, digits",
    'return 2 * axis("seed", [1])': "2 points named 'seed=1'",
    'return axis("sed", [1])': "point sed=1 of the sweep: the config has no key 'sed'",
    'return axis("seed", ["x"])': "point seed=x of the sweep: seed cannot be 'x'",
    'return axis("seed", [0, -1])': "point seed=-1 of the sweep: config.seed must be at least 0",
    'return axis("arg.widht", [1.0])': "did you mean 'width'?",
    'return axis("schedule.total", ["1 epochs"])': "--config.schedule.total is what the sweep",
    'return axis("checkpoint.best_metric", ["eval/top1", "eval/top5"])': "must have one config.ch",
}


@pytest.mark.parametrize("body", MISTAKES)
def test_a_sweep_that_cannot_be_is_refused(write, tmp_path, body):
    with pytest.raises(ConfigError) as error:
        plan(write(body), "", {"schedule.total": "3 epochs"}, tmp_path)
    assert MISTAKES[body] in str(error.value)


def test_a_config_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"digits_segmentation.py must define sweep\(\)"):
        plan("configs/digits_segmentation.py", "", {}, tmp_path)
