"""Points whose training is a few lines of Python, in the place of the real thing."""

import sys

from etils import epath
from tiny import tiny_config

from mobilevitv2_jax.training.sweep import local
from mobilevitv2_jax.training.sweep.points import Point, Run

STEPS = 6


def make_run(directory, name, **changes):
    """Returns a run of six steps."""
    point = Point(name, changes)
    place = epath.Path(directory) / "runs" / name
    return Run(point, tiny_config(), place, ("--workdir", str(place)))


def make_jobs(directory, names):
    """Returns a job for each name."""
    return [
        local.Job(make_run(directory, name), STEPS, directory / "logs" / f"{name}.log")
        for name in names
    ]


FINISH = f"""
metrics = {{"eval/top1": 0.5, "eval_ema/top1": 0.75}}
(directory / "eval.json").write_text(json.dumps({{"{STEPS}": metrics}}))
(directory / "finished.json").write_text(json.dumps({{"step": {STEPS}}}))
"""
"""Leaves the results that a training leaves which has come to its end."""


def command(code):
    """Returns the command that runs the code, in which `directory` is the run directory."""
    head = (
        "import json, os, pathlib, signal, sys, time\n"
        "directory = pathlib.Path(sys.argv[sys.argv.index('--workdir') + 1])\n"
        "directory.mkdir(parents=True, exist_ok=True)\n"
    )
    return (sys.executable, "-uc", head + code)
