"""The run directory: whose it is, and what may be written into it."""

import json
import math

import pytest
from etils import epath
from object_store import ObjectStore
from tiny import tiny_config

from mobilevitv2_jax.config import ConfigError, flatten
from mobilevitv2_jax.training.run_directory import (
    is_finished,
    mark_finished,
    open_run,
    read_config,
    read_results,
    write_results,
)


def test_a_new_directory_gets_the_resolved_config(tmp_path):
    directory = open_run(tiny_config(), tmp_path / "runs" / "new")
    saved = json.loads((directory / "config.json").read_text())
    assert saved["format"] == "mobilevitv2_jax.run/1"
    assert saved["schedule"]["total"] == "6 steps"
    assert flatten(read_config(directory)) == flatten(tiny_config())
    assert [path.name for path in directory.iterdir()] == ["config.json"]


def test_an_empty_directory_is_taken(tmp_path):
    assert open_run(tiny_config(), tmp_path) == tmp_path


def test_the_same_config_again_is_accepted_and_nothing_is_written(tmp_path):
    open_run(tiny_config(), tmp_path)
    before = (tmp_path / "config.json").stat()
    open_run(tiny_config(), tmp_path)
    after = (tmp_path / "config.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_another_config_is_refused_with_every_field_that_differs_and_its_values(tmp_path):
    open_run(tiny_config(), tmp_path)
    saved = (tmp_path / "config.json").read_text()
    other = tiny_config({"seed": 7, "schedule.learning_rate": 0.125})
    with pytest.raises(ConfigError) as error:
        open_run(other, tmp_path)
    text = str(error.value)
    assert "seed: 0 -> 7" in text and "schedule.learning_rate: 0.002 -> 0.125" in text
    assert "allow_changes" in text and "batch_size" not in text
    assert (tmp_path / "config.json").read_text() == saved


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.batch_size", 32),
        ("seed", 7),
        ("data.source", "digit_scenes"),
        ("data.train_split", "test"),
        ("data.directory", "/elsewhere"),
        ("model.dtype", "bfloat16"),
        ("model.param_dtype", "bfloat16"),
        ("model.width_multiplier", 0.5),
        ("model.depthwise", "convolution"),
    ],
)
def test_what_results_depend_on_is_refused_by_name_unless_it_is_allowed_by_name(
    tmp_path, key, value
):
    open_run(tiny_config(), tmp_path)
    with pytest.raises(ConfigError, match=rf"{key}: .* -> {value!r}\. .*allow_changes=KEY"):
        open_run(tiny_config({key: value}), tmp_path)
    other = {key: value, "checkpoint.allow_changes": "optimizer"}
    with pytest.raises(ConfigError, match=key):
        open_run(tiny_config(other), tmp_path)
    open_run(tiny_config({key: value, "checkpoint.allow_changes": key}), tmp_path)
    assert flatten(read_config(tmp_path))[key] == value


@pytest.mark.parametrize("allowed", ["schedule.learning_rate, seed", "schedule,seed"])
def test_what_allow_changes_names_may_change_and_is_saved(tmp_path, allowed):
    open_run(tiny_config(), tmp_path)
    values = {"seed": 7, "schedule.learning_rate": 0.125, "checkpoint.allow_changes": allowed}
    open_run(tiny_config(values), tmp_path)
    assert read_config(tmp_path).schedule.learning_rate == 0.125


def test_allow_changes_lets_nothing_else_pass(tmp_path):
    open_run(tiny_config(), tmp_path)
    values = {"seed": 7, "data.batch_size": 32, "checkpoint.allow_changes": "seed,data.batch"}
    with pytest.raises(ConfigError, match=r"data\.batch_size: 16 -> 32"):
        open_run(tiny_config(values), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint.every", "1 steps"),
        ("checkpoint.keep_latest", 5),
        ("log.every", "1 steps"),
        ("log.tensorboard", False),
        ("eval.every", "1 steps"),
        ("mesh.devices", 0),
        ("mesh.fsdp", 1),
        ("schedule.stop_at", "3 steps"),
        ("data.workers", 2),
        ("data.threads", 7),
    ],
)
def test_what_no_result_depends_on_may_change(tmp_path, key, value):
    open_run(tiny_config(), tmp_path)
    open_run(tiny_config({key: value}), tmp_path)
    assert flatten(read_config(tmp_path))[key] == value


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="not empty and is not a run directory"):
        open_run(tiny_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_that_cannot_be_made_is_refused_with_the_reason(tmp_path):
    # Below a file: for the superuser, too, no directory can be made there.
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="cannot be written .*: choose another"):
            open_run(tiny_config(), path)


def test_a_config_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not the config of a run"):
        open_run(tiny_config(), tmp_path)


def test_a_directory_without_a_run_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match="not a run directory: .* Train first"):
        read_config(tmp_path)


def test_results_come_back_with_every_digit_and_beside_those_of_other_steps(tmp_path):
    write_results(tmp_path, 10, {"eval/top1": 0.1 + 0.2, "eval/loss": 1 / 3})
    write_results(tmp_path, 20, {"eval/top1": 0.5})
    write_results(tmp_path, 20, {"eval/top1": 0.75})
    assert read_results(tmp_path, 10) == {"eval/top1": 0.1 + 0.2, "eval/loss": 1 / 3}
    assert read_results(tmp_path, 20) == {"eval/top1": 0.75}
    assert read_results(tmp_path, 30) is None


def test_a_result_that_is_not_a_number_survives(tmp_path):
    write_results(tmp_path, 10, {"eval/loss": math.nan})
    assert math.isnan(float(read_results(tmp_path, 10)["eval/loss"]))


def test_a_run_is_finished_at_the_step_that_it_was_finished_at(tmp_path):
    write_results(tmp_path, 10, {"eval/top1": 0.5})
    assert not is_finished(tmp_path, 10)
    mark_finished(tmp_path, 10)
    assert is_finished(tmp_path, 10) and not is_finished(tmp_path, 20)


def test_no_results_are_none(tmp_path):
    assert read_results(tmp_path, 10) is None


def test_storage_whose_library_is_missing_is_told_with_what_to_install(monkeypatch):
    def missing(self, path):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr("etils.epath.backend._FileSystemSpecBackend.fs", missing)
    for reach in (lambda path: open_run(tiny_config(), path), read_config):
        with pytest.raises(
            ConfigError, match=r"install gcsfs\): pip install 'mobilevitv2-jax\[gcs"
        ):
            reach("gs://bucket/run")


def test_a_run_can_live_on_an_object_store(object_store):
    directory = epath.Path(ObjectStore.ROOT) / "runs" / "new"
    assert open_run(tiny_config(), directory) == directory
    open_run(tiny_config(), directory)
    with pytest.raises(ConfigError, match="seed: 0 -> 7"):
        open_run(tiny_config({"seed": 7}), directory)
    write_results(directory, 5, {"eval/top1": 0.5})
    write_results(directory, 10, {"eval/top1": 0.75})
    assert read_results(directory, 5) == {"eval/top1": 0.5}
    assert ObjectStore.names() == ["runs/new/config.json", "runs/new/eval.json"]
