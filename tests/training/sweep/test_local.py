"""Points trained on this machine: side by side, again after failures, and stopped together."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from sweep_points import FINISH, command, make_jobs

from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.training.sweep import local
from mobilevitv2_jax.training.sweep.devices import Slot, own_cores

SLOT = Slot({}, frozenset())


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains points by the given code; returns status and jobs."""

    def train_by(code, names, slots=(SLOT,), retries=0):
        monkeypatch.setattr(local, "TRAIN", command(code))
        jobs = make_jobs(tmp_path, names)
        return local.train_points(jobs, slots, retries, tmp_path / "lock"), jobs

    return train_by


def test_points_run_side_by_side_and_never_more_than_there_is_room_for(train, tmp_path):
    # Each waits until another one runs at the same time, and counts those it sees.
    code = """
running = directory.parents[1] / "running"
running.mkdir(exist_ok=True)
(running / directory.name).touch()
deadline, seen = time.monotonic() + 60, 1
while seen < 2 and time.monotonic() < deadline:
    seen = max(seen, len(list(running.iterdir())))
(directory / "seen").write_text(str(max(seen, len(list(running.iterdir())))))
time.sleep(0.3)
(running / directory.name).unlink()
"""
    code += FINISH
    status, jobs = train(code, ["a", "b", "c", "d"], [SLOT, SLOT])
    assert status == 0
    assert {job.state for job in jobs} == {"finished"}
    seen = [(tmp_path / "runs" / job.run.name / "seen").read_text() for job in jobs]
    assert set(seen) == {"2"}


def test_a_point_has_the_devices_and_cores_of_its_slot_and_no_terminal(train, tmp_path):
    core = min(own_cores())
    slots = [Slot({"CUDA_VISIBLE_DEVICES": "3"}, frozenset({core}))]
    code = """
cores = sorted(os.sched_getaffinity(0))
found = [os.environ["CUDA_VISIBLE_DEVICES"], cores, sys.stdin.read()]
(directory / "found").write_text(json.dumps(found))
"""
    # The affinity is set when the process has begun; reading the environment comes after that.
    status, _ = train("time.sleep(0.2)\n" + code, ["a"], slots)
    assert status == 0
    assert json.loads((tmp_path / "runs" / "a" / "found").read_text()) == ["3", [core], ""]


def test_a_point_that_fails_is_tried_again_and_listed_when_it_fails_for_good(
    train, tmp_path, capsys
):
    code = (
        "def finish():"
        + FINISH.replace("\n", "\n    ")
        + """
tries = directory / "tries"
number = int(tries.read_text()) + 1 if tries.exists() else 1
tries.write_text(str(number))
if directory.name == "good" or (directory.name == "better" and number == 2):
    finish()
    sys.exit(0)
print(f"error: it was try {number}\\n")
sys.exit(2 if directory.name == "mistaken" else 1)
"""
    )
    status, jobs = train(code, ["good", "better", "bad", "mistaken"], retries=1)
    assert status == 1
    assert {job.run.name: (job.state, job.attempts) for job in jobs} == {
        "good": ("finished", 1),
        "better": ("finished", 2),
        "bad": ("failed", 2),
        "mistaken": ("failed", 1),
    }
    told = local.failures(jobs)
    assert "failed bad (status 1, 2 attempts): error: it was try 2\n" in told
    assert f"{tmp_path / 'logs' / 'mistaken.log'}" in told and "better" not in told
    assert "it was try 1" in (tmp_path / "logs" / "bad.log").read_text()
    said = capsys.readouterr().out
    assert "failed better (status 1), will be tried again: error: it was try 1" in said
    assert "2 failed, 2 finished" in said


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_lets_points_save_and_starts_no_more(train, tmp_path, number, expected):
    code = """
def stop(*_):
    (directory / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(directory / "ready").touch()
time.sleep(600)
"""

    def interrupt():
        while not (tmp_path / "runs" / "a" / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    status, jobs = train(code, ["a", "b"])
    assert status == expected
    assert [job.state for job in jobs] == ["stopped", "waiting"]
    assert (tmp_path / "runs" / "a" / "saved").exists()


def test_a_sweep_that_leaves_early_leaves_nothing_behind(train, tmp_path, monkeypatch):
    pid = tmp_path / "runs" / "a" / "pid"

    def fail(_):
        if pid.exists() and pid.read_text():
            raise RuntimeError

    monkeypatch.setattr(local.StopRequest, "reached", fail)
    with pytest.raises(RuntimeError):
        train('(directory / "pid").write_text(str(os.getpid()))\ntime.sleep(600)', ["a"])
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_point_that_ends_well_before_its_end_is_not_finished(train):
    status, (job,) = train("pass", ["a"], retries=1)
    assert (status, job.state, job.attempts) == (0, "stopped", 1)


def test_two_sweeps_are_not_at_work_in_one_directory(train, tmp_path):
    with (
        local._hold(tmp_path / "lock"),
        pytest.raises(ConfigError, match="a sweep is at work in .*`fuser .*/lock`"),
    ):
        train("pass", ["a"])
    assert train("pass", ["a"])[0] == 0


@pytest.mark.slow
def test_a_point_left_behind_by_a_killed_sweep_keeps_others_away(tmp_path, train):
    # A sweep in a process of its own, killed with SIGKILL, while its point goes on.
    code = '(directory / "pid").write_text(str(os.getpid()))\ntime.sleep(600)'
    program = f"""
import pathlib, sys
from sweep_points import command, make_jobs
from mobilevitv2_jax.training.sweep import local
from mobilevitv2_jax.training.sweep.devices import Slot
local.TRAIN = command({code!r})
here = pathlib.Path({str(tmp_path)!r})
local.train_points(make_jobs(here, ["a"]), [Slot({{}}, frozenset())], 0, here / "lock")
"""
    path = os.pathsep.join(["tests", *sys.path])
    sweep = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=pathlib.Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
    )
    pid = tmp_path / "runs" / "a" / "pid"
    while not (pid.exists() and pid.read_text()):
        assert sweep.poll() is None
        time.sleep(0.01)
    sweep.kill()
    sweep.wait()
    try:
        with pytest.raises(ConfigError, match="a sweep is at work in .*`fuser .*/lock`"):
            train("pass", ["a"])
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    while not _is_free(tmp_path / "lock"):
        time.sleep(0.01)
    assert train("pass", ["a"])[0] == 0


def _is_free(lock):
    try:
        with local._hold(lock):
            return True
    except ConfigError:
        return False


def test_progress_is_read_from_the_end_of_the_metrics(tmp_path):
    (job,) = make_jobs(tmp_path, ["a"])
    assert local._progress(job) == ["0/6", "", "", "", ""]
    place = pathlib.Path(job.run.directory)
    place.mkdir(parents=True)
    lines = [
        {"step": 2, "train/loss": 2.5, "train/images_per_second": 32.0},
        {"step": 3, "eval_ema/top1": 0.25},
        {"step": 4, "train/loss": "nan", "train/images_per_second": 16.0},
    ]
    text = "x" * 2**17 + "\n" + "".join(json.dumps(line) + "\n" for line in lines)
    (place / "metrics.jsonl").write_text(text + '{"step": 5, "train')
    job.state = "running"
    assert local._progress(job) == ["4/6", "", "25.00%", "16", "0:02"]


def test_what_a_point_says_is_shown_as_it_is(train, capsys):
    """Brackets are no markup: some would end the sweep."""
    code = FINISH + "if directory.name == 'bad':\n    sys.exit('bad [/job:a] [batch, x]')\n"
    status, jobs = train(code, ["bad", "good"])
    assert status == 1 and [job.state for job in jobs] == ["failed", "finished"]
    assert "bad [/job:a] [batch, x]" in capsys.readouterr().out
