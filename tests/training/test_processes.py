"""Several processes on this host: they compute what one does, and end together.

Everything is started as a user would, with what launch/local.py gives to each process.
"""

import contextlib
import importlib.util
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from states import arrays_of, bytes_of, saved_state
from tiny import tiny_digits, tiny_flags, use_small_model

from mobilevitv2_jax.training import loop
from mobilevitv2_jax.training.logging import read_metrics
from mobilevitv2_jax.training.run_directory import read_results
from mobilevitv2_jax.weights.checkpoint import Checkpoints

REPOSITORY = pathlib.Path(__file__).parents[2]
LOCAL = REPOSITORY / "launch" / "local.py"
SMALL = "tests/small_cli.py"

pytestmark = pytest.mark.slow

FLAGS = tiny_flags({"mesh.devices": 0, "eval.batch_size": 100})
ENDLESS = (
    "--config.schedule.total=1000000 steps",
    "--config.eval.every=1000000 steps",
    "--config.checkpoint.every=5 steps",  # so that saves are under way, too
    "--heartbeat-seconds=10",
)


def command(directory, *options, program=SMALL, fault=None):
    """Returns the words that train: with the small model, and there perhaps with a fault."""
    verb = (
        () if program != SMALL else ("train",) if fault is None else (f"--fault={fault}", "train")
    )
    return [sys.executable, "-u", program, *verb, "--workdir", str(directory), *options]


def run(words, processes=1):
    """Runs a command to its end, in several processes; returns its status and what it said."""
    launcher = [sys.executable, str(LOCAL), "-n", str(processes), "--"] if processes > 1 else []
    done = subprocess.run(
        [*launcher, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=1800
    )
    return done.returncode, done.stdout + done.stderr


def train(directory, *options, processes=1, **arguments):
    status, said = run(command(directory, *FLAGS, *options, **arguments), processes)
    assert status == 0, said
    return said


class Job:
    """Processes without a launcher that would end them: each must end by itself."""

    def __init__(self, directory, *options, fault=None, processes=2):
        words = command(directory, *FLAGS, *options, fault=fault)
        spec = importlib.util.spec_from_file_location("local", LOCAL)
        local = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(local)
        self.processes = local.start(words, processes) if processes > 1 else [start_one(words)]
        self.said = [[] for _ in self.processes]
        self.readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in zip(self.processes, self.said, strict=True)
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, process, lines):
        for line in process.stdout:
            lines.append(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def until(self, text, timeout=600):
        """Waits until process 0 says a text."""
        deadline = time.monotonic() + timeout
        while not any(text in line for line in self.said[0]):
            assert time.monotonic() < deadline and self.processes[0].poll() is None, self.said
            time.sleep(0.05)

    def statuses(self, timeout, of=None):
        """Returns the statuses of processes, which must all end in so many seconds."""
        deadline = time.monotonic() + timeout
        chosen = range(len(self.processes)) if of is None else of
        found = [self.processes[i].wait(max(deadline - time.monotonic(), 0)) for i in chosen]
        for i in chosen:
            self.readers[i].join(timeout=10)
        return found

    def last_lines(self, index):
        return "".join(self.said[index][-40:])


def start_one(words):
    return subprocess.Popen(
        words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def latest(directory):
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.latest_step()


# ---- They compute what one does -----------------------------------------------------------

# One step, for the trace of plain SGD is then the gradient itself; after a step of Adam, rounding
# is amplified wherever a gradient is nearly 0.
ONE_STEP = {
    **{"optimizer.name": "sgd", "optimizer.weight_decay": 0.0, "optimizer.gradient_clip": 0.0},
    **{"schedule.total": "1 steps", "log.every": "1 steps", "model.ffn_dropout": 0.1},
    # 1437 = 3 x 479 examples, which neither batches nor processes divide.
    **{"data.eval_split": "train", "eval.batch_size": 100},
}


def options(changes):
    return [f"--config.{key}={value}" for key, value in changes.items()]


def compare(one, several, steps=1):
    """Checks that two runs of a step or two have the same loss, state and evaluation."""
    lines = [read_metrics(directory / "metrics.jsonl") for directory in (one, several)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    assert abs(lines[0][0]["train/loss"] - lines[1][0]["train/loss"]) <= 1e-6
    results = [read_results(directory, steps) for directory in (one, several)]
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert abs(value - results[1][name]) <= 1e-6, name
    left, right = (arrays_of(saved_state(directory, steps)) for directory in (one, several))
    for group, tolerance in (
        (".statistics", 1e-6),
        (".ema_statistics", 1e-6),
        (".optimizer", 1e-5),
        (".parameters", 1e-5),
        (".ema_parameters", 1e-5),
    ):
        paths = [path for path in left if path.startswith(group)]
        top = max(np.abs(left[path]).max() for path in paths)
        # Against the largest of all: some gradients of the real model are 0 but for rounding.
        assert max(np.abs(left[path] - right[path]).max() for path in paths) <= tolerance * top


# Four processes would compile the real model four times, at once.
@pytest.mark.parametrize(("processes", "program"), [(2, "train.py"), (4, SMALL)])
def test_processes_train_and_evaluate_as_one_does(tmp_path, monkeypatch, processes, program):
    if program == SMALL:
        use_small_model(monkeypatch)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA complains of a busy machine's compiling
    one, several = tmp_path / "one", tmp_path / "several"
    train(one, *options(ONE_STEP), program=program)
    said = train(several, *options(ONE_STEP), program=program, processes=processes)
    compare(one, several)

    # Process 0 alone says more than who it is, and that it waits.
    ours = [x for x in said.splitlines() if "[Gloo]" not in x and "still waiting" not in x]
    assert any(line.startswith(f"[0] process 0 of {processes}, {processes} x cpu") for line in ours)
    for index in range(1, processes):
        (line,) = (line for line in ours if line.startswith(f"[{index}]"))
        assert line.startswith(f"[{index}] process {index} of {processes}, {processes} x cpu")
    assert (several / "predictions.png").exists() and not list(several.glob(".shared*"))

    if processes == 2:
        results = read_results(several, 1)
        (several / "eval.json").unlink()
        status, said = run(command(several, program="eval.py"), processes=2)
        assert status == 0, said
        assert read_results(several, 1) == results


def test_a_run_goes_on_with_other_numbers_of_processes_devices_and_workers(tmp_path, monkeypatch):
    use_small_model(monkeypatch)
    straight, changed = tmp_path / "straight", tmp_path / "changed"
    two_steps = ONE_STEP | {"schedule.total": "2 steps"}
    assert loop.train(tiny_digits(two_steps), straight, "") == 0
    assert loop.train(tiny_digits(two_steps | {"schedule.stop_at": "1 steps"}), changed, "") == 0
    said = train(changed, *options(two_steps | {"data.workers": 2}), processes=2)
    assert f"continuing {changed} at step 1 of 2" in said
    compare(straight, changed, steps=2)


# ---- They fit together, or end before they compile ----------------------------------------


def test_a_work_directory_that_is_not_shared_ends_the_job(tmp_path):
    words = [sys.executable, "-c", APART, str(tmp_path), *command("DIRECTORY", *FLAGS)]
    status, said = run(words, processes=2)
    assert status == 2, said
    assert "process 1 does not see what process 0 writes to the workdir" in said
    assert "compiled" not in said


# Gives each process a work directory of its own, as a host has that mounts nothing.
APART = """
import os, sys
root, *words = sys.argv[1:]
own = root + "/" + sys.argv[-1].removeprefix("--process-id=")
os.execv(words[0], [own if word == "DIRECTORY" else word for word in words])
"""


def test_processes_that_see_different_checkpoints_end_the_job(tmp_path):
    directory = tmp_path / "run"
    train(directory, "--config.schedule.stop_at=1 steps")
    status, said = run(command(directory, *FLAGS, fault="forget"), processes=2)
    assert status == 2, said
    assert "differ in their latest checkpoint: process 0 has 1, process 1 has 0" in said
    assert "compiled" not in said


def test_processes_with_different_configs_end_the_job(tmp_path):
    words = [sys.executable, "-c", UNLIKE, *command(tmp_path / "run", *FLAGS)]
    status, said = run(words, processes=2)
    assert status == 2, said
    assert "differ in the checksum of their config" in said and "compiled" not in said


UNLIKE = """
import os, sys
words = sys.argv[1:]
os.execv(words[0], [*words, "--config.seed=" + words[-1].removeprefix("--process-id=")])
"""


# ---- They end together --------------------------------------------------------------------

# Promised: 15 s at a heartbeat of 10 s; a test waits for three times as long.
DEATH = 45


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [1, 0])
def test_a_process_that_is_killed_or_stopped_ends_the_others(tmp_path, number, victim):
    with Job(tmp_path / "run", *ENDLESS) as job:
        job.until(" 20/1000000")
        job.processes[victim].send_signal(number)
        (status,) = job.statuses(DEATH, of=[1 - victim])
        # What JAX says of it, in an exception or by itself.
        said = job.last_lines(1 - victim)
        # Python, JAX's own thread, or a save that waits for the other: whichever sees it.
        assert status in (70, -signal.SIGABRT) or (status == 1 and "saving to" in said), said
        assert "Gloo" in said or "another task died" in said, said


def test_an_exception_of_one_process_ends_all(tmp_path):
    with Job(tmp_path / "run", *ENDLESS, fault="fail") as job:
        job.until("compiled")
        statuses = job.statuses(15)  # promised: 5 s
        assert statuses[1] == 70 and statuses[0] in (70, -signal.SIGABRT)
        assert "RuntimeError: this process has a fault" in job.last_lines(1)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_that_makes_no_progress_ends_all_and_says_where_it_stands(tmp_path, processes):
    options = [option for option in ENDLESS if processes > 1 or "heartbeat" not in option]
    options.append("--config.faults.step_timeout=10")
    with Job(tmp_path / "run", *options, fault="hang", processes=processes) as job:
        job.until("compiled")
        statuses = job.statuses(3 * 10 + DEATH)
        assert 70 in statuses and 0 not in statuses
        said = "".join(job.last_lines(i) for i in range(processes))
        assert "no progress for 10 s (config.faults.step_timeout)" in said
        if processes == 1:
            assert "in hang" in said


def test_a_stop_signal_to_one_process_stops_all_at_one_step_and_the_same_command_goes_on(
    tmp_path, monkeypatch
):
    straight, directory = tmp_path / "straight", tmp_path / "run"
    options = (
        *("--config.schedule.total=300 steps", "--config.eval.every=300 steps"),
        *("--config.checkpoint.every=300 steps", "--config.log.every=10 steps"),
    )
    said = train(straight, *options, processes=2, fault="watch_writing")
    writers = {line.split()[0] for line in said.splitlines() if " writes " in line}
    assert writers == {"[0]"}
    with Job(directory, *options) as job:
        job.until("step  20/300")
        job.processes[1].send_signal(signal.SIGTERM)
        assert job.statuses(30) == [75, 75]  # promised: 10 s
        said = job.last_lines(0)
    step = latest(directory)
    assert 20 <= step < 300 and f"stopped at step {step} of 300" in said
    said = train(directory, *options, processes=2)
    assert f"continuing {directory} at step {step} of 300" in said
    use_small_model(monkeypatch)
    assert bytes_of(saved_state(directory, 300)) == bytes_of(saved_state(straight, 300))


def test_a_stop_signal_ends_an_evaluation_on_all_processes_and_it_is_made_later(tmp_path):
    directory = tmp_path / "run"
    options = ("--config.eval.batch_size=2", "--config.eval.pictures_from=2")
    with Job(directory, *options, fault="stop_evaluating") as job:
        job.until("compiled")
        assert job.statuses(60) == [75, 75]
        assert "stopped at step 3 of 6" in job.last_lines(0)
        assert "eval at step 3" not in job.last_lines(0)
    assert latest(directory) == 3
    said = train(directory, *options, processes=2)
    assert "eval at step 3" in said and "eval at step 6" in said
