"""A run whose directory is on an object store: nothing can be appended to or renamed there."""

import os
import signal

import jax
import object_store
import pytest
from etils import epath
from object_store import ObjectStore
from states import bytes_of, saved_state
from tiny import tiny_config, use_small_model

from mobilevitv2_jax.training import loop
from mobilevitv2_jax.training.evaluate import evaluate_run
from mobilevitv2_jax.training.logging import read_metrics
from mobilevitv2_jax.training.run_directory import read_config, read_results

LOSSES = ("step", "train/loss", "eval/loss", "eval_ema/top1")


@pytest.mark.slow
def test_a_run_on_an_object_store_is_stopped_goes_on_and_is_evaluated_as_one_on_a_disk(
    tmp_path, monkeypatch, capsys
):
    use_small_model(monkeypatch)
    object_store.install(monkeypatch)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = tiny_config()
    bucket = epath.Path(ObjectStore.ROOT) / "run"
    assert loop.train(config, tmp_path / "disk", "") == 0

    dispatch, calls = jax.stages.Compiled.__call__, []

    def stopped(self, *arguments):
        calls.append(None)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return dispatch(self, *arguments)

    monkeypatch.setattr(jax.stages.Compiled, "__call__", stopped)
    assert loop.train(config, bucket, "") == 75
    assert loop.train(config, bucket, "") == 0
    assert f"continuing {bucket} at step 5 of 6" in capsys.readouterr().out

    assert bytes_of(saved_state(bucket, 6)) == bytes_of(saved_state(tmp_path / "disk", 6))
    lines = [
        [{name: line.get(name) for name in LOSSES} for line in read_metrics(run / "metrics.jsonl")]
        for run in (tmp_path / "disk", bucket)
    ]
    assert lines[0] == lines[1]
    results = read_results(bucket, 6)
    (bucket / "eval.json").unlink()
    assert evaluate_run(read_config(bucket), bucket) == 0
    assert read_results(bucket, 6) == results
    kinds = {name.split("/")[1].split(".")[0] for name in ObjectStore.names()}
    assert kinds >= {
        "config",
        "model",
        "summary",
        "metrics",
        "events",
        "checkpoints",
        "predictions",
    }
    # Everything is in the bucket, and nothing beside it: not even in a directory called "gs:".
    assert list((tmp_path / "here").iterdir()) == []
