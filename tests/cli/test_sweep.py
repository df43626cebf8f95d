"""`mobilevitv2 sweep`, from the command line to the results."""

import csv
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest
from PIL import Image
from sweep_points import FINISH, STEPS, command
from tiny import VALUES, tiny_flags, use_small_model

from mobilevitv2_jax import config as configs
from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.errors import UserError
from mobilevitv2_jax.training.run_directory import mark_finished
from mobilevitv2_jax.training.sweep import conduct, examination, local

NAMES = [f"seed={seed},width={width}" for seed in (0, 1) for width in (0.25, 0.5, 1.0)]
FLAGS = [flag for flag in tiny_flags() if "width_multiplier" not in flag]

TRAIN = (
    FINISH
    + """
trained = directory.parents[1] / "trained"
trained.open("a").write(directory.name + " ")
"""
)
COST = {"parameters": 10, "macs": 20, "latency": 0.5, "device": "cpu"}


@pytest.fixture
def sweep(capsys, tmp_path, monkeypatch):
    """Runs the verb on tiny digits; JAX is asked in this process, and points are stand-ins."""
    use_small_model(monkeypatch)
    monkeypatch.setattr(local, "TRAIN", command(TRAIN))

    def ask(function, *arguments):
        if function is examination.measure:
            return dict.fromkeys(arguments[0], COST)
        return function(*arguments)

    monkeypatch.setattr(conduct, "in_own_process", ask)
    train = local.train_points

    def train_points(jobs, *rest):
        for job in jobs:  # what a training writes first
            job.run.directory.mkdir(parents=True, exist_ok=True)
            (job.run.directory / "config.json").write_text(configs.to_json(job.run.config))
        return train(jobs, *rest)

    monkeypatch.setattr(local, "train_points", train_points)

    def run(*options):
        words = ["sweep", "configs/digits.py", f"--workdir={tmp_path / 'sweep'}", *FLAGS, *options]
        with pytest.raises(SystemExit) as leaving:
            main(words)
        return leaving.value.code, *capsys.readouterr()

    return run


def rows_of(out):
    """Returns the lines with single spaces."""
    return [" ".join(line.split()) for line in out.splitlines()]


def test_a_dry_run_lists_every_point_and_writes_nothing(sweep, tmp_path):
    status, out, _ = sweep("--dry-run")
    assert status == 0
    rows = rows_of(out)
    for name in NAMES:
        seed, width = (part.partition("=")[2] for part in name.split(","))
        assert f"{name} {seed} {width} {STEPS} new" in rows
    assert "6 points" in out
    assert not list(tmp_path.iterdir())


def test_a_point_that_cannot_run_is_named_before_the_first_starts(sweep, tmp_path):
    wanted = jax.local_device_count() + 1
    status, _, err = sweep(f"--config.mesh.devices={wanted}")
    assert status == 2
    assert f"point {NAMES[0]} of the sweep: config.mesh.devices must be at most" in err
    assert not (tmp_path / "sweep").exists()


def test_data_that_is_missing_is_told_before_the_first_starts(sweep, tmp_path):
    status, _, err = sweep("--config.data.train_split=validation")
    assert status == 2
    assert f"point {NAMES[0]} of the sweep: config.data: split of digits must be one of" in err
    assert not (tmp_path / "sweep").exists()


def test_a_run_directory_of_another_config_is_told_before_the_first_starts(sweep, tmp_path):
    place = tmp_path / "sweep" / "runs" / NAMES[4]
    place.mkdir(parents=True)
    (place / "config.json").write_text(configs.to_json(configs.load("configs/digits.py")))
    status, _, err = sweep()
    assert status == 2 and f"point {NAMES[4]} of the sweep: workdir" in err
    assert "seed: 0 -> 1" in err
    assert not (tmp_path / "sweep" / "trained").exists()


@pytest.mark.slow
def test_points_are_trained_compared_and_only_what_is_left_is_trained_again(sweep, tmp_path):
    directory = tmp_path / "sweep"
    status, out, _ = sweep("--parallel=1")
    assert status == 0
    assert (directory / "trained").read_text().split() == NAMES
    assert "width=0.25" in out and "75.00% ± 0.00" in out
    assert (directory / "results.txt").read_text().rstrip() in out
    with (directory / "results.csv").open() as file:
        assert {row["point"] for row in csv.DictReader(file)} == set(NAMES)
    for name in ("curves.png", "accuracy.png"):
        with Image.open(directory / name) as picture:
            assert picture.format == "PNG"

    (directory / "runs" / NAMES[3] / "finished.json").unlink()
    status, out, _ = sweep()
    assert status == 0
    assert (directory / "trained").read_text().split() == [*NAMES, NAMES[3]]

    status, out, _ = sweep()
    assert status == 0 and "started" not in out and "75.00%" in out


@pytest.mark.slow
def test_failures_are_listed_and_the_others_compared(sweep, monkeypatch):
    code = "if 'seed=1' in directory.name:\n    sys.exit('error: no luck')\n" + TRAIN
    monkeypatch.setattr(local, "TRAIN", command(code))
    status, out, _ = sweep("--retries=0")
    assert status == 1
    assert "width=0.25 1 of 2 75.00% 50.00% 0.00 0.00 0.50" in rows_of(out)
    assert out.count("(status 1, 1 attempts): error: no luck") == 3


def test_results_of_nothing_are_an_error_and_train_nothing(sweep, tmp_path):
    status, _, err = sweep("--results")
    assert status == 1 and "no point of" in err and "is finished yet" in err
    assert not (tmp_path / "sweep").exists()


def test_commands_are_printed_one_for_each_point_that_is_left(sweep, tmp_path):
    status, out, _ = sweep("--executor=commands")
    lines = out.splitlines()
    assert status == 0 and len(lines) == 6
    assert lines[0].startswith("mobilevitv2 train --config configs/digits.py:width=0.25 --workdir ")
    assert not (tmp_path / "sweep").exists()
    place = tmp_path / "sweep" / "runs" / NAMES[0]
    place.mkdir(parents=True)
    # Evaluated by hand before it has left its results, a point is left to train.
    (place / "eval.json").write_text(f'{{"{STEPS}": {{"eval_ema/top1": 1.0}}}}')
    assert sweep("--executor=commands")[1].splitlines() == lines
    mark_finished(place, STEPS)
    assert sweep("--executor=commands")[1].splitlines() == lines[1:]


INTERRUPTED = """
import os, signal, threading, time
from mobilevitv2_jax.training.sweep.examination import in_own_process
if __name__ == "__main__":
    threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()
    in_own_process(time.sleep, 600)
"""


@pytest.mark.slow
def test_ctrl_c_ends_what_is_computed_in_a_process_of_its_own(tmp_path):
    (tmp_path / "program.py").write_text(INTERRUPTED)
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGINT and "KeyboardInterrupt" in done.stderr


@pytest.mark.slow
def test_what_a_model_costs_is_measured_at_the_size_of_the_evaluation(monkeypatch):
    use_small_model(monkeypatch)
    config = configs.load("configs/digits.py")
    texts = {}
    for size in (32, 64):
        config.update_from_flattened_dict({**VALUES, "eval.crop": size, "eval.resize": size})
        texts[size] = configs.to_json(config)
    small, large = (examination.measure(texts)[size] for size in (32, 64))
    assert small["parameters"] == large["parameters"] > 0
    assert large["macs"] > 3 * small["macs"]
    assert small["latency"] > 0 and small["device"] == jax.local_devices()[0].device_kind


@pytest.mark.parametrize(("function", "words"), [(divmod, None), (os.abort, "has died")])
def test_what_is_asked_in_its_own_process_is_answered_or_its_death_is_told(function, words):
    if words:
        with pytest.raises(UserError, match=words):
            examination.in_own_process(function)
    else:
        assert examination.in_own_process(function, 7, 2) == (3, 1)


@pytest.mark.slow
def test_digits_are_swept_over_three_widths_and_two_seeds(capsys, tmp_path, monkeypatch):
    # The trainings are real ones, of the small model, each in its own process.
    use_small_model(monkeypatch)
    monkeypatch.setattr(conduct, "in_own_process", lambda function, *rest: function(*rest))
    repository = pathlib.Path(__file__).parents[2]
    program = (sys.executable, "-u", str(repository / "tests" / "small_cli.py"), "train")
    monkeypatch.setattr(local, "TRAIN", program)
    words = ["sweep", "configs/digits.py", "--workdir", str(tmp_path), "--parallel=2", *FLAGS]
    with pytest.raises(SystemExit) as leaving:
        main(words)
    out = capsys.readouterr().out
    assert leaving.value.code == 0, out
    assert out.count("finished seed=") == 6 and "6 finished" in out
    for name in NAMES:
        config = configs.from_json((tmp_path / "runs" / name / "config.json").read_text(), name)
        seed, width = (part.partition("=")[2] for part in name.split(","))
        assert (config.model.width_multiplier, config.seed) == (float(width), int(seed))
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == [
        f"width={x}" for x in (0.25, 0.25, 0.5, 0.5, 1.0, 1.0)
    ]
    assert len({row["eval/loss"] for row in rows}) == 2  # the small model has seeds, and no width
