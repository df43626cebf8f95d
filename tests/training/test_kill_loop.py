"""Twenty deaths: a run that is killed again and again comes to the same end as one that is not."""

import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from states import bytes_of, saved_state
from tiny import tiny_flags, use_small_model

from mobilevitv2_jax.training.logging import read_metrics

ROUNDS = 20
STEPS = 300
CHANGES = {
    "schedule.total": f"{STEPS} steps",
    "model.ffn_dropout": 0.2,
    # A save after every other step: most of the time a checkpoint is being written.
    "checkpoint.every": "2 steps",
    "eval.every": "100 steps",
    "log.tensorboard": False,
}


def start(directory, **changes):
    options = ["train", "--workdir", str(directory), *tiny_flags(CHANGES | changes)]
    return subprocess.Popen(
        [sys.executable, "tests/small_cli.py", *options],
        cwd=pathlib.Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(directory, **changes):
    process = start(directory, **changes)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def is_saving(directory):
    """Returns whether a checkpoint was being written, or had no manifest yet."""
    steps = list((directory / "checkpoints").iterdir())
    return any("tmp" in path.name or not (path / "checksums.json").exists() for path in steps)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_like_one_that_was_not(
    tmp_path, monkeypatch, record_property
):
    use_small_model(monkeypatch)
    finish(tmp_path / "straight", **{"checkpoint.every": "100 steps"})
    directory = tmp_path / "killed"
    draw = random.Random(0)
    mid_save, reached = 0, []
    for _ in range(ROUNDS):
        process = start(directory)
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("step "):
                break
        time.sleep(draw.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        said += process.communicate(timeout=60)[0]
        assert process.returncode == -signal.SIGKILL, said
        mid_save += is_saving(directory)
        for line in (directory / "metrics.jsonl").read_text().splitlines():
            json.loads(line)  # the file is valid whenever the process dies
        continued = re.search(r"continuing .* at step (\d+) of", said)
        reached.append(int(continued[1]) if continued else 0)
        assert "every checkpoint" not in said
    said = finish(directory)
    reached.append(int(re.search(r"continuing .* at step (\d+) of", said)[1]))

    record_property("killed while saving", mid_save)
    assert mid_save >= ROUNDS // 4
    assert reached == sorted(reached) and reached[-1] > reached[0]  # it lost no ground
    expected, found = (
        bytes_of(saved_state(run, STEPS)) for run in (tmp_path / "straight", directory)
    )
    assert [path for path in expected if expected[path] != found[path]] == []
    lines = [
        [(line["step"], line.get("train/loss"), line.get("eval/loss")) for line in metrics]
        for metrics in (
            read_metrics(tmp_path / name / "metrics.jsonl") for name in ("straight", "killed")
        )
    ]
    assert lines[0] == lines[1]
