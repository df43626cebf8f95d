"""Trains the points of a sweep on this machine, some at a time, each in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.training.faults import EXIT_STATUS, StopRequest
from mobilevitv2_jax.training.logging import format_seconds
from mobilevitv2_jax.training.sweep.devices import Slot
from mobilevitv2_jax.training.sweep.points import TRAIN, Run
from mobilevitv2_jax.training.sweep.results import is_finished

# The colour of each state, in the order in which the table shows them.
_STATES = {
    "running": "bold",
    "failed": "red",
    "stopped": "yellow",
    "waiting": "dim",
    "finished": "green",
}
_POLL = 0.1  # seconds
_WIDTH = 140  # columns, where the output is no terminal
_TAIL = 2**16  # bytes of a file's end, in which its last lines are
_CANNOT_BE_USED = 2  # the status of a mistake: trying again changes nothing


@dataclasses.dataclass
class Job:
    """A point on its way.

    Attributes:
        run: the point.
        steps: length of its training.
        log: the file that its process writes to.
        state: a key of `_STATES`.
        attempts: how often it was started.
        process: while it runs.
        slot: while it runs.
        status: of the last attempt that has ended.
    """

    run: Run
    steps: int
    log: pathlib.Path
    state: str = "waiting"
    attempts: int = 0
    process: subprocess.Popen | None = None
    slot: Slot | None = None
    status: int | None = None


def train_points(
    jobs: Sequence[Job], slots: Sequence[Slot], retries: int, lock: pathlib.Path
) -> int:
    """Trains all points that are waiting.

    SIGTERM and Ctrl-C are passed on: the points save a checkpoint and end. A second Ctrl-C ends
    them at once.

    Args:
        jobs: the points; their states are kept up to date.
        slots: room for as many at a time.
        retries: how often a point that has failed is started again.
        lock: a file that is held as long as this process or a point of it lives.

    Returns:
        The exit status: 0, 1 if points have failed, 75 after SIGTERM, 130 after Ctrl-C.

    Raises:
        ConfigError: if another sweep, or a point that it has left behind, holds the lock.
    """
    free = list(slots)
    told = False
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console = Console(width=_WIDTH, soft_wrap=True)
    with (
        _hold(lock) as descriptor,
        Live(console=console, get_renderable=lambda: _table(jobs), refresh_per_second=1),
        StopRequest() as stop,
        _killed_at_exit(jobs),
    ):
        while True:
            if stop.reached() and not told:
                told = True
                _signal(jobs)
            for job in _in_state(jobs, "waiting"):
                if free and not told:
                    _start(job, free.pop(), descriptor)
                    console.print(
                        f"started {job.run.name}, log {job.log}", highlight=False, markup=False
                    )
            for job in _in_state(jobs, "running"):
                if job.process.poll() is not None:  # type: ignore[union-attr]
                    free.append(job.slot)  # type: ignore[arg-type]
                    _end(job, retries, told)
                    console.print(_ended_line(job), highlight=False, markup=False)
            if not _in_state(jobs, "running") and (told or not _in_state(jobs, "waiting")):
                break
            time.sleep(_POLL)
    if not console.is_terminal:
        console.print()  # the table has no end of line there
    if told:
        return EXIT_STATUS[stop.signal]  # type: ignore[index]
    return 1 if _in_state(jobs, "failed") else 0


def _in_state(jobs: Sequence[Job], state: str) -> list[Job]:
    return [job for job in jobs if job.state == state]


@contextlib.contextmanager
def _hold(lock: pathlib.Path) -> Iterator[int]:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"a sweep is at work in {lock.parent}, or a point that a killed one has left "
                f"behind is: wait for it, or end it (`fuser {lock}` names the processes)"
            ) from None
        yield file.fileno()


@contextlib.contextmanager
def _killed_at_exit(jobs: Sequence[Job]) -> Iterator[None]:
    """Ends what still runs, with all that it has started, when this process leaves early."""
    try:
        yield
    finally:
        for job in _in_state(jobs, "running"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGKILL)  # type: ignore[union-attr]
            job.process.wait()  # type: ignore[union-attr]


def _signal(jobs: Sequence[Job]) -> None:
    # To the process alone, which ends its loaders itself when it has saved.
    for job in _in_state(jobs, "running"):
        job.process.terminate()  # type: ignore[union-attr]


def _start(job: Job, slot: Slot, lock: int) -> None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        job.process = subprocess.Popen(
            [*TRAIN, *job.run.options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot.environment},
            # The lock is inherited: a point that outlives the sweep keeps it.
            pass_fds=(lock,),
            # Ctrl-C reaches this process alone, which passes it on as SIGTERM.
            start_new_session=True,
        )
    if slot.cores:
        # All its threads are yet to come, and inherit this.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(job.process.pid, slot.cores)
    job.state, job.slot = "running", slot
    job.attempts += 1


def _end(job: Job, retries: int, stopping: bool) -> None:
    job.status = job.process.returncode  # type: ignore[union-attr]
    job.process = job.slot = None
    if job.status == 0:  # a run may have been asked to stop before its end
        job.state = "finished" if is_finished(job.run, job.steps) else "stopped"
    elif stopping:
        job.state = "stopped"
    elif job.status != _CANNOT_BE_USED and job.attempts <= retries:
        job.state = "waiting"
    else:
        job.state = "failed"


def _ended_line(job: Job) -> str:
    line = f"{job.state} {job.run.name}"
    if job.state == "waiting":
        line = f"failed {job.run.name} (status {job.status}), will be tried again"
    return line if job.state in ("finished", "stopped") else f"{line}: {last_line(job.log)}"


def failures(jobs: Sequence[Job]) -> str:
    """Returns a line for each point that has failed, with the end of its log."""
    return "\n".join(
        f"failed {job.run.name} (status {job.status}, {job.attempts} attempts): "
        f"{last_line(job.log)}\n  {job.log}"
        for job in _in_state(jobs, "failed")
    )


def last_line(log: pathlib.Path) -> str:
    """Returns the last line of a log that says something."""
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    return lines[-1] if lines else "it has said nothing"


def _tail(path: pathlib.Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read().decode(errors="replace")


def _table(jobs: Sequence[Job]) -> Table:
    table = Table("point", "state")
    for name in ("step", "loss", jobs[0].run.config.checkpoint.best_metric, "images/s", "left"):
        table.add_column(name, justify="right")
    order = list(_STATES)
    for job in sorted(jobs, key=lambda job: order.index(job.state)):
        table.add_row(job.run.name, job.state, *_progress(job), style=_STATES[job.state])
    counts = {state: len(_in_state(jobs, state)) for state in order}
    table.caption = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return table


def _progress(job: Job) -> list[str]:
    """Returns step, loss, main metric, speed and time left, as far as they are known."""
    last: dict[str, Any] = {}
    for text in _tail(pathlib.Path(job.run.directory) / "metrics.jsonl").splitlines():
        with contextlib.suppress(ValueError):  # the first of the tail, and one being written
            last.update(json.loads(text))
    config = job.run.config
    speed = _number(last, "train/images_per_second")
    cells = {
        "step": f"{last.get('step', 0)}/{job.steps}",
        "loss": _form(_number(last, "train/loss"), ".4f"),
        "metric": _form(_number(last, config.checkpoint.best_metric), ".2%"),
        "speed": _form(speed, ".0f"),
        "left": "",
    }
    if job.state == "running" and speed:
        images = (job.steps - last["step"]) * config.data.batch_size
        cells["left"] = format_seconds(images / speed)
    return list(cells.values())


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    return value if isinstance(value, float) else None


def _form(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
