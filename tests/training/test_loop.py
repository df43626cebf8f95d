"""The training loop as a whole: files, order, resuming, stopping, and what ends it."""

import dataclasses
import gzip
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from PIL import Image
from states import bytes_of, saved_state
from tiny import tiny_config, tiny_digits, tiny_flags, use_small_model

from mobilevitv2_jax.config import ConfigError, flatten
from mobilevitv2_jax.data import augment
from mobilevitv2_jax.data.loader import Batches, train_batches
from mobilevitv2_jax.data.sources import load_source
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.training import logging, loop
from mobilevitv2_jax.training.experiment import Experiment, prepare
from mobilevitv2_jax.training.logging import read_metrics
from mobilevitv2_jax.training.run_directory import read_config, read_results
from mobilevitv2_jax.weights.checkpoint import Checkpoints

REPOSITORY = pathlib.Path(__file__).parents[2]
TIMINGS = ("images_per_second", "data_wait", "tflops", "utilisation")

# Dropout and random crops, so that the draws of a step matter; a length that no interval divides.
SMALL = {
    "model.ffn_dropout": 0.2,
    "augment.random_resized_crop": True,
    "augment.horizontal_flip": 0.5,
    "schedule.total": "7 steps",
    "checkpoint.every": "5 steps",
}


@pytest.fixture
def small_model(monkeypatch):
    use_small_model(monkeypatch)


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_small_model(monkeypatch)
        use_seconds(monkeypatch)
        assert loop.train(tiny_config(SMALL), directory, "python train.py") == 0
    return directory


@pytest.fixture
def straight(straight_run, small_model):
    """A run of the small model without interruption; not to be written to."""
    return straight_run


def on_step(monkeypatch, number, action):
    """Calls `action` when the training step is dispatched for the `number`-th time from now."""
    calls = []
    original = jax.stages.Compiled.__call__

    def dispatch(self, *arguments):
        calls.append(None)
        if len(calls) == number:
            action()
        return original(self, *arguments)

    monkeypatch.setattr(jax.stages.Compiled, "__call__", dispatch)


def use_seconds(monkeypatch):
    """Makes a training step last one second, and all that is not training a thousand."""
    now = [0.0]
    monkeypatch.setattr(
        logging, "time", types.SimpleNamespace(perf_counter=lambda: now[0], time=time.time)
    )

    def last(owner, name, seconds):
        original = getattr(owner, name)

        def timed(*arguments):
            now[0] += seconds
            return original(*arguments)

        monkeypatch.setattr(owner, name, timed)

    last(jax.stages.Compiled, "__call__", 1)
    last(jax.stages.Lowered, "compile", 1000)
    last(Experiment, "evaluate", 1000)
    last(Checkpoints, "save", 1000)


def clock(directory, step, config):
    """Returns the time counters of a checkpoint."""
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(step, prepare(config).abstract_state)[1]["clock"]


def assert_the_same_run(directory, straight, config):
    """Compares all that a run leaves, but for what depends on the clock."""
    expected, found = leaves(straight, 7, config), leaves(directory, 7, config)
    assert expected.keys() == found.keys()
    assert [path for path in expected if expected[path] != found[path]] == []
    assert values(directory) == values(straight)
    assert read_results(directory, 7) == read_results(straight, 7)
    assert best_step(directory) == best_step(straight)


def best_step(directory):
    """Returns which checkpoint of a run is the best."""
    metric = tiny_config().checkpoint.best_metric
    with Checkpoints(directory / "checkpoints", best_metric=metric, read_only=True) as checkpoints:
        return checkpoints.best_step()


def leaves(directory, step, config):
    """Returns the bytes of every leaf of a checkpoint, by path."""
    return bytes_of(saved_state(directory, step, config))


def values(directory):
    """Returns metrics.jsonl without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if not name.endswith(TIMINGS)}
        for line in read_metrics(directory / "metrics.jsonl")
    ]


def files(directory):
    """Returns every file with its content and the time of its last change."""
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("model", ["small", pytest.param("real", marks=pytest.mark.slow)])
def test_a_run_leaves_what_is_promised_and_the_same_command_only_tells_it(
    model, tmp_path, capsys, monkeypatch
):
    if model == "small":
        use_small_model(monkeypatch)
    directory = tmp_path / "run"
    assert loop.train(tiny_config(), directory, "python train.py --flag") == 0
    said = capsys.readouterr().out

    config = json.loads((directory / "config.json").read_text())
    assert config["format"] == "mobilevitv2_jax.run/1" and config["schedule"]["total"] == "6 steps"
    saved = MobileViTV2Config.from_pretrained(directory / "model")
    assert (saved.width_multiplier, saved.num_labels, saved.id2label[9]) == (0.25, 10, "9")
    summary = (directory / "summary.txt").read_text()
    for text in ("stage 1", "total", *(f"\n{key} = " for key in flatten(tiny_config()))):
        assert text in summary
    assert list(directory.glob("events.out.tfevents.*"))
    with Image.open(directory / "predictions.png") as picture:
        assert picture.format == "PNG"
    with Checkpoints(directory / "checkpoints", best_metric="eval_ema/top1") as checkpoints:
        assert checkpoints.steps()[-2:] == [4, 6]  # every 2 steps, and the latest 2 kept
        assert checkpoints.best_step() in (3, 6)  # evaluated every 3 steps
    lines = read_metrics(directory / "metrics.jsonl")
    train = [line["step"] for line in lines if "train/loss" in line]
    evaluated = [line["step"] for line in lines if "eval_ema/top1" in line]
    assert (train, evaluated) == ([2, 4, 6], [3, 6])
    assert {name for line in lines for name in line} >= {
        *("train/loss", "train/learning_rate", "train/gradient_norm"),
        *("train/images_per_second", "train/data_wait", "train/tflops"),
        *("eval/loss", "eval/top1", "eval/top5"),
        *("eval_ema/loss", "eval_ema/top1", "eval_ema/top5"),
    }
    last = {name: value for name, value in lines[-1].items() if name != "step"}
    assert read_results(directory, 6) == last
    for text in ("step 6/6", "eval at step 6", f"python eval.py --workdir {directory}"):
        assert text in said
    assert "--config.schedule.total=12steps" in said  # how to train longer

    before = files(directory)
    assert loop.train(tiny_config(), directory, "python train.py --flag") == 0
    told = capsys.readouterr().out
    identity = said.splitlines(keepends=True)[0]
    assert identity.startswith("process 0 of 1, ")
    assert told == identity + said[said.index(f"finished {directory}") :]
    assert files(directory) == before


@pytest.mark.slow
@pytest.mark.parametrize(("at", "workers"), [(4, 0), (6, 2)])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    straight, tmp_path, monkeypatch, capsys, at, workers
):
    config = tiny_config(SMALL | {"data.workers": workers})
    directory = tmp_path / "run"
    use_seconds(monkeypatch)
    with monkeypatch.context() as patch:
        on_step(patch, at, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert loop.train(config, directory, "python train.py --again") == 75
    said = capsys.readouterr().out
    assert f"stopped at step {at} of 7. To continue:\n  python train.py --again" in said
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == at  # the step that was running is not lost
    assert loop.train(config, directory, "python train.py --again") == 0
    assert f"continuing {directory} at step {at} of 7" in capsys.readouterr().out
    assert_the_same_run(directory, straight, config)
    counters = {"seconds": 7.0, "waiting": 0.0, "steps": 7}
    assert clock(directory, 7, config) == clock(straight, 7, config) == counters


@pytest.mark.slow
def test_images_per_second_are_those_of_training_alone(straight):
    # 16 images and a second per step; the first line is read while one step more is running.
    lines = read_metrics(straight / "metrics.jsonl")
    found = [line["train/images_per_second"] for line in lines if "train/loss" in line]
    assert len(found) == 4 and all(16 / 1.5 <= rate <= 16 * 2 for rate in found)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_stops_where_it_is_told_goes_on_to_the_same_bits(
    straight, tmp_path, capsys, workers
):
    directory = tmp_path / "run"
    changes = SMALL | {"data.workers": workers}
    command = "python train.py --config.schedule.stop_at='3 steps' --again"
    for _ in range(2):  # the second time there is nothing to do
        stopping = tiny_config(changes | {"schedule.stop_at": "3 steps"})
        assert loop.train(stopping, directory, command) == 0
        said = capsys.readouterr().out
        assert "stopped at step 3 of 7. To continue:\n  python train.py --again\n" in said
    assert values(directory)[-1]["step"] == 3 and "eval/top1" in values(directory)[-1]
    assert loop.train(tiny_config(changes), directory, command) == 0
    assert_the_same_run(directory, straight, tiny_config(changes))


def test_a_signal_while_the_step_is_compiled_is_answered_before_the_first(
    small_model, tmp_path, monkeypatch, capsys
):
    compile_ = jax.stages.Lowered.compile

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return compile_(self, *arguments)

    monkeypatch.setattr(jax.stages.Lowered, "compile", interrupted)
    assert loop.train(tiny_config(SMALL), tmp_path / "run", "") == 75
    assert "stopped at step 0 of 7" in capsys.readouterr().out


@pytest.mark.slow
def test_a_trace_of_the_steps_asked_for_opens_and_changes_no_bit_over_a_resume(
    straight, tmp_path, monkeypatch, capsys
):
    directory = tmp_path / "run"
    config = tiny_config(SMALL | {"profile.start": 3, "profile.steps": 2})
    with monkeypatch.context() as patch:
        on_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))  # in the window
        assert loop.train(config, directory, "") == 75
    assert f"traced from step 3 on: {directory}/profile\n" in capsys.readouterr().out
    assert loop.train(config, directory, "") == 0
    assert f"traced from step 4 on: {directory}/profile\n" in capsys.readouterr().out
    traces = sorted(directory.glob("profile/**/*.xplane.pb"))
    assert len(traces) == 2
    for trace in traces:
        planes = [plane.name for plane in jax.profiler.ProfileData.from_file(str(trace)).planes]
        assert "/host:CPU" in planes
        (file,) = trace.parent.glob("perfetto_trace.json.gz")
        names = {
            event.get("name")
            for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        }
        # The step's function, dispatched once in each trace.
        assert any("train_step" in str(name) for name in names)
    assert leaves(directory, 7, config) == leaves(straight, 7, config)
    assert values(directory) == values(straight)


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 7])
def test_an_evaluation_that_a_signal_cuts_short_is_made_when_the_run_goes_on(
    straight, tmp_path, monkeypatch, capsys, at
):
    evaluate = Experiment.evaluate

    def interrupted(self, state, over):
        if state.step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, state, over)

    config = tiny_config(SMALL)
    directory = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "evaluate", interrupted)
        assert loop.train(config, directory, "") == 75
    assert f"stopped at step {at} of 7" in capsys.readouterr().out
    assert not any("eval/top1" in line for line in values(directory) if line["step"] == at)
    assert loop.train(config, directory, "") == 0
    assert_the_same_run(directory, straight, config)


@pytest.mark.slow
def test_lines_after_the_last_checkpoint_of_a_run_that_died_are_written_anew(
    straight, tmp_path, monkeypatch
):
    class Died(Exception):
        pass

    def die():
        raise Died

    config = tiny_config(SMALL | {"data.threads": 0})
    directory = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Died):
        on_step(patch, 7, die)  # the last checkpoint is that of step 6, the last line of 4
        patch.setattr(Checkpoints, "save", save_only(5))
        loop.train(config, directory, "")
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 5
    assert values(directory)[-1]["step"] == 6
    assert loop.train(config, directory, "") == 0
    assert values(directory) == values(straight)
    assert leaves(directory, 7, config) == leaves(straight, 7, config)


def save_only(step):
    """Returns a `Checkpoints.save` that loses all other steps, as a process that dies does."""
    original = Checkpoints.save

    def save(self, number, *arguments):
        if number == step:
            original(self, number, *arguments)

    return save


@pytest.mark.slow
@pytest.mark.parametrize("evaluated", [False, True])
def test_a_run_that_died_before_its_results_only_evaluates_again(straight, tmp_path, evaluated):
    directory = pathlib.Path(shutil.copytree(straight, tmp_path / "run"))
    if not evaluated:  # by eval.py, after it died
        (directory / "eval.json").unlink()
    (directory / "predictions.png").unlink()
    (directory / "finished.json").unlink()
    assert loop.train(tiny_config(SMALL), directory, "") == 0
    assert read_results(directory, 7) == read_results(straight, 7)
    assert values(directory) == values(straight)
    assert (directory / "predictions.png").exists()


@pytest.mark.slow
def test_the_order_is_evaluate_save_next_batch_step_and_metrics_come_one_step_late(
    small_model, tmp_path, monkeypatch
):
    events = []

    def record(owner, name, event):
        original = getattr(owner, name)

        def recorded(self, *arguments, **options):
            text = event(*arguments, **options)
            if text:
                events.append(text)
            return original(self, *arguments, **options)

        monkeypatch.setattr(owner, name, recorded)

    evaluating = []

    def next_batch():
        return None if evaluating else "next"

    record(Batches, "__next__", next_batch)
    record(Checkpoints, "save", lambda step, *_: f"save {step}")
    record(jax.stages.Compiled, "__call__", lambda *_: "step")
    evaluate = Experiment.evaluate

    def recorded_evaluate(self, state, over):
        events.append("evaluate")
        evaluating.append(True)
        try:
            return evaluate(self, state, over)
        finally:
            evaluating.clear()

    monkeypatch.setattr(Experiment, "evaluate", recorded_evaluate)
    device_get = jax.device_get

    def recorded_device_get(tree):
        if isinstance(tree, dict) and "gradient_norm" in tree:
            events.append("fetch")
        return device_get(tree)

    monkeypatch.setattr(jax, "device_get", recorded_device_get)
    predict = loop.predict

    def recorded_predict(*arguments, **options):
        evaluating.append(True)
        return predict(*arguments, **options)

    monkeypatch.setattr(loop, "predict", recorded_predict)
    changes = {"schedule.total": "5 steps", "checkpoint.every": "2 steps"}
    assert loop.train(tiny_config(changes), tmp_path / "run", "") == 0
    assert events == [
        *("next", "step"),
        *("next", "step", "fetch"),  # the first step's, while the second runs
        *("fetch", "save 2", "next", "step"),
        *("fetch", "evaluate", "save 3", "next", "step"),
        *("fetch", "save 4", "next", "step"),
        *("fetch", "evaluate", "save 5"),
    ]


def use_wrong_labels(monkeypatch):
    """Gives every digit to train on a label outside the classes: the loss is NaN."""

    def open_source(config, split):
        source = load_source("digits", split)
        return dataclasses.replace(source, labels=np.full_like(source.labels, 99))

    monkeypatch.setattr(loop, "open_source", open_source)


def test_steps_that_are_not_finite_end_the_run_and_name_the_last_checkpoint(
    small_model, tmp_path, monkeypatch, capsys
):
    use_wrong_labels(monkeypatch)
    config = tiny_config({"optimizer.max_skipped": 3, "eval.every": "100 steps"})
    with pytest.raises(loop.NonFiniteError) as error:
        loop.train(config, tmp_path / "run", "")
    text = str(error.value)
    assert "3 steps in a row up to step 3 were not finite" in text and "step 2" in text
    assert "step 1: not finite, skipped (1 in a row); examples " in capsys.readouterr().out
    skipped = [line for line in values(tmp_path / "run") if "train/skipped_in_a_row" in line]
    assert [(line["step"], line["train/skipped_in_a_row"]) for line in skipped] == [
        (1, 1),
        (2, 2),
        (3, 3),
    ]
    with train_batches(
        load_source("digits", "train"),
        augment.train_transform(config),
        batch_size=16,
        seed=config.seed,
    ) as batches:
        for line in skipped:
            assert line["train/skipped_examples"] == next(batches)["index"].tolist()
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        state, _ = checkpoints.restore(2, prepare(config).abstract_state)
    for path, value in prepare(config).initial_state().parameters.items():
        np.testing.assert_array_equal(state.parameters[path], value)


def test_steps_that_are_not_finite_from_the_start_name_no_checkpoint(
    small_model, tmp_path, monkeypatch
):
    use_wrong_labels(monkeypatch)
    config = tiny_config({"optimizer.max_skipped": 1, "eval.every": "100 steps"})
    with pytest.raises(loop.NonFiniteError) as error:
        loop.train(config, tmp_path / "run", "")
    assert "No checkpoint was saved" in str(error.value)


def test_evaluation_counts_every_example_once_whatever_the_batch(small_model):
    results = []
    for batch_size in (72, 100):  # 360 in five full batches, or in four with 40 of padding
        experiment = prepare(tiny_config({"eval.batch_size": batch_size}))
        results.append(experiment.evaluate(experiment.initial_state()))
    for name, value in results[0].items():
        if name.endswith("loss"):
            assert results[1][name] == pytest.approx(value, rel=1e-6)  # float32 sums
        else:
            assert results[1][name] == value
    assert results[0]["eval/top1"] * 360 == pytest.approx(round(results[0]["eval/top1"] * 360))


@pytest.mark.parametrize(
    ("field", "prefix"),
    [
        ("parameters", "eval"),
        pytest.param("statistics", "eval", marks=pytest.mark.slow),
        pytest.param("ema_parameters", "eval_ema", marks=pytest.mark.slow),
        ("ema_statistics", "eval_ema"),
    ],
)
def test_an_evaluation_takes_weights_and_statistics_that_belong_together(
    small_model, field, prefix
):
    experiment = prepare(tiny_config())
    state = experiment.initial_state()
    nan = {path: value * np.nan for path, value in getattr(state, field).items()}
    metrics = experiment.evaluate(dataclasses.replace(state, **{field: nan}))
    assert {name for name in ("eval", "eval_ema") if np.isnan(metrics[f"{name}/loss"])} == {prefix}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh.devices": 4096}, r"config\.mesh\.devices must be at most"),
        ({"data.source": "digit"}, "did you mean 'digits'"),
        ({"data.eval_split": "held_out"}, "split of digits must be one of"),
        ({"data.train_split": "trian"}, "did you mean 'train'"),
        ({"model.expand_ratio": -1.0}, r"config\.model\.expand_ratio"),
    ],
)
def test_what_cannot_run_is_refused_before_any_compile_and_leaves_nothing(
    tmp_path, monkeypatch, changes, message
):
    def refuse(*_, **__):
        raise AssertionError("compiled")

    monkeypatch.setattr(jax, "jit", refuse)
    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    with pytest.raises(ConfigError, match=message):
        loop.train(tiny_config(changes), tmp_path / "run", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_of_another_config_is_refused_before_any_compile(straight, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)  # may not be called
    before = files(straight)
    with pytest.raises(ConfigError, match="seed: 0 -> 1"):
        loop.train(tiny_config(SMALL | {"seed": 1}), straight, "")
    assert files(straight) == before
    assert read_config(straight).seed == 0


@pytest.mark.slow
def test_a_run_goes_on_with_the_data_that_it_began_with_or_by_leave(
    straight, tmp_path, monkeypatch
):
    def fewer_digits(config, split):
        source = load_source("digits", split)
        if split == "train":
            source = dataclasses.replace(
                source, images=source.images[:-1], labels=source.labels[:-1]
            )
        return source

    directory = pathlib.Path(shutil.copytree(straight, tmp_path / "run"))
    shutil.rmtree(directory / "checkpoints" / "00000007")
    before = files(directory / "checkpoints")
    monkeypatch.setattr(loop, "open_source", fewer_digits)
    with pytest.raises(ConfigError, match="was trained on digits/train/1437, and .* now digits"):
        loop.train(tiny_config(SMALL), directory, "")
    assert files(directory / "checkpoints") == before
    allowed = tiny_config(SMALL | {"checkpoint.allow_changes": "data"})
    assert loop.train(allowed, directory, "") == 0


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_the_run_comes_to_the_same_bits(
    straight, tmp_path, capsys
):
    directory = pathlib.Path(shutil.copytree(straight, tmp_path / "run"))
    payload = next((directory / "checkpoints" / "00000007" / "state").rglob("d/*"))
    payload.write_bytes(payload.read_bytes()[:-1])
    assert loop.train(tiny_config(SMALL), directory, "") == 0
    said = capsys.readouterr().out
    assert "DAMAGED CHECKPOINT: step 7" in said and payload.name in said
    assert f"continuing {directory} at step 6 of 7" in said
    config = tiny_config(SMALL)
    assert leaves(directory, 7, config) == leaves(straight, 7, config)
    assert values(directory) == values(straight)


@pytest.mark.slow
def test_a_schedule_shorter_than_the_run_is_refused(straight, tmp_path):
    directory = pathlib.Path(shutil.copytree(straight, tmp_path / "run"))
    changes = {"schedule.total": "5 steps", "checkpoint.allow_changes": "schedule"}
    with pytest.raises(ConfigError, match=r"config\.schedule\.total is 5 .* for 7"):
        loop.train(tiny_config(SMALL | changes), directory, "")


# ---- In a process of its own, as a user runs it -------------------------------------------


def start(program, directory, changes):
    """Starts a training with the tiny experiment, and returns the process."""
    verb = ["train"] if program == SMALL_PROGRAM else []
    return subprocess.Popen(
        [sys.executable, program, *verb, "--workdir", str(directory), *tiny_flags(changes)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def until(process, text):
    """Reads what a process says up to a line with `text`."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the process ended without saying {text!r}")


SMALL_PROGRAM = "tests/small_cli.py"
LONGER = {
    "model.ffn_dropout": 0.2,
    "augment.random_resized_crop": True,
    "schedule.total": "30 steps",
    "eval.every": "15 steps",
    "checkpoint.every": "5 steps",
    "log.every": "5 steps",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "program"),
    [
        (signal.SIGTERM, 75, SMALL_PROGRAM),
        (signal.SIGINT, 130, SMALL_PROGRAM),
        (signal.SIGKILL, -9, "train.py"),  # once with the real model
    ],
)
def test_a_process_with_workers_that_is_stopped_or_killed_goes_on_to_the_bits_of_one_without(
    tmp_path, monkeypatch, number, status, program
):
    directory, straight = tmp_path / "run", tmp_path / "straight"
    changes = LONGER | {"data.workers": 2}
    process = start(program, directory, changes)
    until(process, "step 15/30")
    if number == signal.SIGKILL:
        process.kill()
    else:  # as a terminal does, and launch/local.py: to the loaders, too
        os.killpg(process.pid, number)
    asked = time.monotonic()
    said, _ = process.communicate(timeout=30)  # promised: 10 s from signal to durable
    assert process.returncode == status, said
    assert time.monotonic() - asked <= 30

    process = start(program, directory, changes)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert f"continuing {directory} at step" in said
    if program == SMALL_PROGRAM:
        use_small_model(monkeypatch)
    assert loop.train(tiny_digits(LONGER), straight, "") == 0
    config = read_config(directory)
    expected, found = leaves(straight, 30, config), leaves(directory, 30, config)
    assert [path for path in expected if expected[path] != found[path]] == []
    assert values(directory) == values(straight)
