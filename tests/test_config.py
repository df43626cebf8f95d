"""The schema, the files of `configs/`, and what is refused."""

import json
import math

import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilevitv2_jax import config as configs
from mobilevitv2_jax.config import ConfigError, Duration
from mobilevitv2_jax.validation import validate


@pytest.fixture
def config():
    return configs.load("configs/digits.py")


def with_values(config, values):
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(values)
    return changed.lock()


def test_a_loaded_config_is_locked_and_typed(config):
    with pytest.raises(AttributeError):
        config.schedule.learning_rat = 1.0
    with pytest.raises(TypeError):
        config.data.batch_size = "many"
    config.schedule.learning_rate = 1  # an integer is a number
    assert isinstance(config.schedule.learning_rate, float)


def test_the_default_config_is_valid(config):
    validate(configs.default_config())
    validate(config)


def test_the_argument_of_digits_sets_every_field_that_follows_from_it():
    config = configs.load("configs/digits.py", "width=1.0,resolution=96")
    assert config.model.width_multiplier == 1.0
    sizes = (config.data.image_size, config.eval.resize, config.eval.crop, config.model.image_size)
    assert sizes == (96, 96, 96, 96)


def test_json_round_trip_keeps_every_value_and_type(config):
    config = with_values(config, {"augment.scale": (0.2, 1.0), "model.num_labels": 7})
    again = configs.from_json(configs.to_json(config), "config.json")
    assert again == config
    assert again.is_locked
    assert again.augment.scale == (0.2, 1.0)
    assert again.model.num_labels == 7 and again.model.problem_type is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "is not the config of a run"),
        ("[]", "is not the config of a run"),
        ("{}", "is not the config of a run"),
        ('{"format": "other/1"}', "has format 'other/1'"),
        ('{"seed": 1.5}', "wrong type for seed"),
        ('{"augment": {"scale": null}}', "wrong type for augment.scale"),
        ('{"data": {"batch_sise": 3}}', "did you mean 'data.batch_size'"),
    ],
)
def test_a_config_json_that_cannot_be_read_is_refused(text, words):
    if text.startswith('{"') and "format" not in text:
        text = json.dumps({"format": configs.FORMAT, **json.loads(text)})
    with pytest.raises(ConfigError, match="some/config.json") as error:
        configs.from_json(text, "some/config.json")
    assert words in str(error.value)


@given(
    value=st.floats(0, 1e9, allow_nan=False),
    unit=st.sampled_from(["step", "steps", "epoch", "epochs", "example", "examples"]),
    space=st.sampled_from(["", " ", "  "]),
)
def test_a_duration_is_read_back_as_it_was_written(value, unit, space):
    duration = Duration.parse(f"{value!r}{space}{unit}")
    assert duration == Duration(value, unit.rstrip("s") + "s")


@given(
    count=st.integers(0, 10_000), examples=st.integers(1, 10**7), batch_size=st.integers(1, 8192)
)
def test_steps_are_whole_epochs_round_up_and_examples_are_all_seen(count, examples, batch_size):
    def steps(unit):
        return Duration(count, unit).steps(examples, batch_size)

    assert steps("steps") == count
    assert steps("epochs") == count * math.ceil(examples / batch_size)
    assert steps("examples") == math.ceil(count / batch_size)


@pytest.mark.parametrize("text", ["", "10", "ten steps", "10 hours", "-1 steps", "nan epochs", 3])
def test_a_duration_without_number_or_unit_is_refused(text):
    with pytest.raises(ConfigError, match="log.every must be a number of steps, epochs or"):
        Duration.parse(text, "log.every")


def test_an_argument_takes_the_types_of_its_defaults():
    arg = configs.parse_arg("width=1, flag,name=x=y", width=0.5, flag=False, name="", size=64)
    assert arg.to_dict() == {"width": 1.0, "flag": True, "name": "x=y", "size": 64}
    assert configs.parse_arg(None, width=0.5).width == 0.5


def test_an_argument_of_a_few_texts_is_one_of_them_and_the_first_by_default():
    kinds = ("own", "none")
    assert configs.parse_arg("", kind=kinds).kind == "own"
    assert configs.parse_arg("kind=none", kind=kinds).kind == "none"
    with pytest.raises(ConfigError, match="must be one of own, none, got 'non' .did you mean"):
        configs.parse_arg("kind=non", kind=kinds)


@pytest.mark.parametrize(
    ("arg", "path", "width"),
    [
        ("/my/images", "/my/images", 0.5),
        ("/my/images,width=1", "/my/images", 1.0),
        ("width=1,gs://a/b c,/d", "gs://a/b c,/d", 1.0),
        ("path=/a=b", "/a=b", 0.5),
        ("", "", 0.5),
    ],
)
def test_a_value_alone_is_that_of_the_argument_that_may_be_bare(arg, path, width):
    found = configs.parse_arg(arg, bare="path", path="", width=0.5)
    assert (found.path, found.width) == (path, width)


def test_a_bare_value_with_an_equals_sign_is_refused_with_its_remedy():
    with pytest.raises(ConfigError, match="an = in it is given as path=/a=b"):
        configs.parse_arg("/a=b", bare="path", path="")


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("widht=1", "did you mean 'width'"),
        ("width=wide", "width must be of type float, got 'wide'"),
        ("width", "width must be of type float, got ''"),
        ("flag=maybe", "flag must be of type bool, got 'maybe'"),
    ],
)
def test_a_wrong_argument_is_refused(arg, words):
    with pytest.raises(ConfigError) as error:
        configs.parse_arg(arg, width=0.5, flag=False)
    assert words in str(error.value)


def test_differences_pass_over_what_no_result_depends_on(config):
    free = {"checkpoint.keep_best": 3, "log.every": "1 steps", "mesh.devices": 1}
    free |= {"data.workers": 2, "data.threads": 1, "eval.every": "3 epochs"}
    assert configs.differences(config, with_values(config, free)) == []


def test_differences_name_the_key_and_both_values(config):
    changed = with_values(config, {"seed": 5, "augment.scale": (0.5, 1.0), "eval.crop": 32})
    assert configs.differences(config, changed) == [
        "augment.scale: [0.7, 1.0] -> [0.5, 1.0]",
        "eval.crop: 64 -> 32",
        "seed: 0 -> 5",
    ]
    read_back = configs.from_json(configs.to_json(changed), "config.json")
    assert configs.differences(changed, read_back) == []


@pytest.mark.parametrize(
    ("allowed", "left"),
    [("seed", 2), ("schedule", 1), ("schedule.total, seed", 1), ("schedule.,seed", 0), ("see", 3)],
)
def test_allow_changes_frees_keys_and_groups_and_nothing_that_only_begins_like_them(
    config, allowed, left
):
    changes = {"seed": 5, "schedule.total": "1 epochs", "schedule.warmup": "1 steps"}
    changed = with_values(config, {**changes, "checkpoint.allow_changes": allowed})
    assert len(configs.differences(config, changed)) == left


def test_different_runs_have_different_names():
    names = [
        configs.run_name("configs/digits.py", "", {}),
        configs.run_name("configs/digits.py", "width=0.5", {}),
        configs.run_name("configs/digits.py", "width=0.5", {"seed": 1}),
        configs.run_name("configs/digits.py", "width=0.5", {"seed": 2}),
    ]
    assert names[:2] == ["digits", "digits-width=0.5"]
    assert len(set(names)) == 4
    assert names[2].startswith("digits-width=0.5-")
    assert "/" not in configs.run_name("digits.py", "directory=/a b/c", {})


def test_a_run_is_found_again_when_only_what_may_change_has_changed():
    free = {
        "data.workers": 2,
        "mesh.devices": 4,
        "schedule.stop_at": "3 steps",
        "log.every": "1 steps",
    }
    assert configs.run_name("a.py", "", free) == "a"
    assert configs.run_name("a.py", "", free | {"seed": 1}) == configs.run_name(
        "a.py", "", {"seed": 1}
    )


def test_a_run_name_does_not_depend_on_the_order_of_the_overrides():
    one = configs.run_name("a.py", "", {"seed": 1, "augment.scale": (0.1, 1.0)})
    other = configs.run_name("a.py", "", {"augment.scale": (0.1, 1.0), "seed": 1})
    assert one == other


BAD_VALUES = {
    "model.width_multiplier": 0.0,
    "model.depthwise": "fast",
    "model.batch_norm_group_size": 48,
    "model.num_channels": 1,
    "task": "detection",
    "augment.short_side": (300, 200),
    "schedule.total": "0 steps",
    "schedule.warmup": "3",
    "schedule.learning_rate": math.nan,
    "schedule.min_learning_rate": -1.0,
    "schedule.warmup_learning_rate": math.inf,
    "eval.every": "1e999 steps",
    "eval.batch_size": 0,
    "eval.resize": 0,
    "eval.crop": 1000,
    "eval.interpolation": "nearest",
    "eval.pictures_from": 0,
    "checkpoint.every": "soon",
    "checkpoint.keep_latest": 1,
    "optimizer.accumulation_steps": 0,
    "checkpoint.keep_best": -1,
    "checkpoint.best_metric": "eval_ema/top2",
    "log.every": "0 epochs",
    "data.batch_size": 0,
    "data.image_size": -1,
    "data.workers": -2,
    "data.threads": -1,
    "data.channel_order": "grb",
    "data.mean": (0.5, math.inf, 0.5),
    "data.std": (0.5, 0.0, 0.5),
    "augment.horizontal_flip": 1.5,
    "augment.scale": (0.5, 0.1),
    "augment.ratio": (1.0, math.inf),
    "augment.interpolation": "cubic",
    "augment.randaugment": -1,
    "augment.randaugment_magnitude": 31,
    "augment.random_erasing": 1.5,
    "augment.mixup": -0.2,
    "augment.cutmix": math.inf,
    "optimizer.name": "adam",
    "optimizer.betas": (0.9, 1.0),
    "optimizer.epsilon": -1e-8,
    "optimizer.momentum": 1.0,
    "optimizer.weight_decay": -0.1,
    "optimizer.layer_decay": 0.0,
    "optimizer.gradient_clip": math.nan,
    "optimizer.label_smoothing": 1.0,
    "optimizer.max_skipped": 0,
    "ema.momentum": -0.1,
    "mesh.devices": -1,
    "mesh.fsdp": 0,
    "profile.start": -1,
    "profile.steps": 0,
    "mesh.fsdp_smallest_bytes": -1,
    "seed": -1,
}


@pytest.mark.parametrize("key", BAD_VALUES)
def test_a_value_out_of_range_is_refused_by_name(config, key):
    with pytest.raises(ConfigError, match=rf"^config\.{key} must be .*got "):
        validate(with_values(config, {key: BAD_VALUES[key]}))


@pytest.mark.parametrize("key", ["randaugment", "random_erasing", "mixup", "cutmix"])
def test_what_would_part_an_image_from_its_map_is_refused_for_segmentation(key):
    config = configs.load("configs/digits_segmentation.py")
    with pytest.raises(
        ConfigError, match=f"config.augment.{key} must be [0.]+ for segmentation, got"
    ):
        validate(with_values(config, {f"augment.{key}": 1}))


@pytest.mark.parametrize(
    "key", ["augment.scale", "augment.ratio", "data.mean", "data.std", "optimizer.betas"]
)
def test_a_pair_of_another_length_is_refused_by_name(config, key):
    with pytest.raises(ConfigError, match=f"config.{key}"):
        validate(with_values(config, {key: (0.5,)}))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("learning_rate", " (did you mean 'schedule.learning_rate'?)"),
        ("schedule.learning_rat", " (did you mean 'schedule.learning_rate'?)"),
        ("optimizer.learning_rate", " (did you mean 'schedule.learning_rate'?)"),
        ("batch_size", " (did you mean 'data.batch_size' or 'eval.batch_size'?)"),
        ("data.bach_size", " (did you mean 'data.batch_size'?)"),
        ("qqqqqqqq", ""),
    ],
)
def test_the_nearest_key_is_found_without_its_group_and_in_the_wrong_one(name, hint):
    assert configs.nearest_key(name, configs.flatten(configs.default_config())) == hint


START = (
    "from mobilevitv2_jax.config import *\n\ndef get_config(arg=''):\n    c = default_config()\n"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "must define get_config"),
        ("def get_config(arg):\n    return {}\n", "must return a ConfigDict"),
        ("def get_config(arg):\n", "mine.py:1 failed with IndentationError"),
        ("import nothing_of_this_name\n", "mine.py:1 failed with ModuleNotFoundError"),
        (START + "    c.data.batch_size = 'x'\n", "mine.py:5 failed with TypeError"),
        (START + "    raise ConfigError('own words')\n", "own words"),
        (START + "    c.schedule.learning_rat = 1\n    return c\n", "'schedule.learning_rate'?"),
        (START + "    del c.seed\n    return c\n", "lacks the key 'seed'"),
    ],
)
def test_a_config_file_with_a_mistake_is_refused_with_file_and_line(tmp_path, text, words):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        configs.load(str(file))
    assert words in str(error.value)


def test_a_missing_config_file_names_those_that_exist():
    with pytest.raises(ConfigError, match="did you mean 'configs/digits.py'"):
        configs.find_file("configs/digit.py")


def test_every_config_of_the_repository_loads_and_is_valid():
    files = sorted((configs.REPOSITORY / "configs").glob("*.py"))
    assert files
    for file in files:
        config = configs.load(str(file))
        validate(config)
        assert isinstance(config, ml_collections.ConfigDict) and config.is_locked
