"""From archives with the structure of the originals to an accuracy, by the published recipe."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from small_imagenet import train_images, validation_images, write_train, write_validation
from small_images import cmyk, encoded

from mobilevitv2_jax.training.logging import read_metrics

REPOSITORY = pathlib.Path(__file__).parents[1]


def start(*command):
    """Starts a command of the repository."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*command):
    """Runs a command to its end and returns what it printed."""
    process = start(*command)
    output = process.communicate(timeout=1200)[0]
    assert process.returncode == 0, output
    return output


def prepare_and_kill(command):
    """Kills the preparation with signal 9 when it begins to write."""
    process = start(*command)
    for line in process.stdout:
        if line.startswith("writing"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_archives_of_1000_classes_become_an_evaluated_model_by_the_published_recipe(tmp_path):
    train, validation = train_images(per_class=1), validation_images(24)
    names = sorted(train)
    train[names[0]] |= {f"{names[0]}_7.JPEG": cmyk(1, (48, 64))}
    train[names[1]] |= {f"{names[1]}_7.JPEG": encoded(2, ".png")}
    train[names[2]] |= {f"{names[2]}_7.JPEG": encoded(3)[:150]}
    write_train(tmp_path / "train.tar", train)
    write_validation(tmp_path / "val.tar", validation)

    prepare = ["-m", "mobilevitv2_jax.cli.main", "prepare", "imagenet", "--processes=2"]
    prepare += [f"--train-tar={tmp_path / 'train.tar'}", f"--val-tar={tmp_path / 'val.tar'}"]
    prepare += [f"--out={tmp_path}", "--allow-partial"]
    prepare_and_kill(prepare)
    assert not (tmp_path / "imagenet2012/5.1.0").exists()
    output = run(*prepare)
    assert "train: 1,002 examples" in output and "1 left out" in output and "2 changed" in output
    source = tfds.data_source("imagenet2012", split="train", data_dir=tmp_path, download=False)
    assert len(source) == 1002

    # The recipe with nothing taken away but length and, for the compiler's sake, depth and width:
    # batches of 8 in groups of BatchNorm.
    workdir = tmp_path / "run"
    changes = {
        "data.directory": tmp_path,
        "data.batch_size": 8,
        "eval.batch_size": 24,
        "eval.pictures_from": 24,
        "model.batch_norm_group_size": 2,
        "model.n_attn_blocks": (1, 1, 1),
        "model.width_multiplier": 0.25,
        "schedule.total": "2steps",
        "schedule.warmup": "1steps",
        "log.every": "1steps",
        "mesh.devices": 1,
    }
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    output = run(
        "train.py", "--config=configs/imagenet.py:width=0.5", f"--workdir={workdir}", *flags
    )
    assert "1,002 images to train on, 24 held out" in output and "loading in " in output
    lines = read_metrics(workdir / "metrics.jsonl")
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    # Weights drawn at random know nothing of 1,000 classes.
    assert len(losses) == 2 and all(abs(loss - math.log(1000)) < 1.5 for loss in losses)
    results = [line for line in lines if "eval_ema/top1" in line][-1]
    output = run("eval.py", f"--workdir={workdir}")
    evaluated = json.loads((workdir / "eval.json").read_text())
    assert f"{results['eval_ema/loss']:.6f}" in output, evaluated
