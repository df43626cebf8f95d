"""Weights & Biases: a fake in its place, for it needs an account."""

import json
import sys
import types

import pytest
from tiny import tiny_config, use_small_model

from mobilevitv2_jax.config import ConfigError
from mobilevitv2_jax.training import loop
from mobilevitv2_jax.training.logging import Logger, read_metrics
from mobilevitv2_jax.training.tracking import load_wandb, start_wandb


class FakeRun:
    def __init__(self):
        self.lines = []
        self.finished = 0

    def log(self, values, step):
        assert not self.finished
        self.lines.append({"step": step, **values})

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    """A fake of the module, which notes what it is asked for."""
    fake = types.ModuleType("wandb")
    fake.runs = []

    def init(**options):
        json.dumps(options["config"])  # wandb takes JSON
        fake.runs.append((options, FakeRun()))
        return fake.runs[-1][1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.mark.slow
def test_a_run_sends_the_lines_of_its_metrics_and_keeps_its_id_in_its_directory(
    wandb, tmp_path, monkeypatch
):
    use_small_model(monkeypatch)
    config = tiny_config({"log.wandb": "digits"})
    assert loop.train(config, tmp_path / "run", "") == 0
    ((options, run),) = wandb.runs
    assert (options["project"], options["name"], options["resume"]) == ("digits", "run", "allow")
    assert options["config"]["schedule.total"] == "6 steps"
    assert run.lines == read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert run.finished == 1

    for name, same in (("run", True), ("other", False)):
        start_wandb(wandb, config, tmp_path / name)
        assert (wandb.runs[-1][0]["id"] == options["id"]) == same


def test_a_process_that_is_not_the_first_sends_nothing(tmp_path):
    run = FakeRun()
    logger = Logger(tmp_path, step=0, tensorboard=False, active=False, wandb=run)
    logger.write(1, {"train/loss": 1.0})
    logger.close()
    assert (run.lines, run.finished) == ([], 0)


def test_without_a_project_wandb_is_not_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    assert load_wandb(tiny_config()) is None


def test_without_wandb_the_extra_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"needs wandb: pip install 'mobilevitv2-jax\[wandb\]'"):
        loop.train(tiny_config({"log.wandb": "digits"}), tmp_path / "run", "")
    assert list(tmp_path.iterdir()) == []
