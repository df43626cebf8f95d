"""The command line with the small model of tiny.py in the place of the real one, and with faults.

`python tests/small_cli.py [--fault=NAME] train …`
"""

import os
import signal
import sys
import time

import jax
import pytest
from tiny import use_small_model

from mobilevitv2_jax.cli.main import main
from mobilevitv2_jax.training.experiment import Experiment
from mobilevitv2_jax.weights.checkpoint import Checkpoints


def at_step(number, action):
    """Calls `action` on process 1 in the place of the `number`-th dispatch of a step."""
    calls = []
    original = jax.stages.Compiled.__call__

    def dispatch(self, *arguments):
        calls.append(None)
        if len(calls) == number and jax.process_index() == 1 % jax.process_count():
            action()
        return original(self, *arguments)

    jax.stages.Compiled.__call__ = dispatch


def fail():
    raise RuntimeError("this process has a fault")


def hang():
    while True:
        time.sleep(1)


def stop_evaluating():
    """Process 1 gets SIGTERM when an evaluation begins, which takes its time."""
    evaluate, put = Experiment.evaluate, Experiment.put

    def evaluate_slowly(self, state, over):
        if jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        Experiment.put = lambda self, batch: time.sleep(0.1) or put(self, batch)
        return evaluate(self, state, over)

    Experiment.evaluate = evaluate_slowly


def forget():
    """Process 1 sees no checkpoint."""
    original = Checkpoints.latest_step
    Checkpoints.latest_step = lambda self: None if jax.process_index() == 1 else original(self)


def watch_writing():
    """Tells which files below the run directory a process writes, but for checkpoints."""
    workdir = sys.argv[sys.argv.index("--workdir") + 1] + "/"

    def watch(event, arguments):
        if event != "open" or not str(arguments[0]).startswith(workdir):
            return
        name, flags = str(arguments[0]).removeprefix(workdir), arguments[2] or 0
        if flags & (os.O_WRONLY | os.O_RDWR) and not name.startswith("checkpoints/"):
            sys.stdout.write(f"writes {name}\n")

    sys.addaudithook(watch)


FAULTS = {
    "fail": lambda: at_step(5, fail),
    "hang": lambda: at_step(5, hang),
    "forget": forget,
    "stop_evaluating": stop_evaluating,
    "watch_writing": watch_writing,
}

if __name__ == "__main__":
    use_small_model(pytest.MonkeyPatch())
    arguments = sys.argv[1:]
    if arguments[0].startswith("--fault="):
        FAULTS[arguments.pop(0).removeprefix("--fault=")]()
    main(arguments)
