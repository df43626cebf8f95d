"""What may happen to a process: being told to stop, making no progress, and its end."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import NoReturn, TypeVar

from jax.experimental import multihost_utils

Item = TypeVar("Item")

EXIT_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 75}
"""Status of a run that was stopped and can be continued: 75 asks a scheduler to requeue it."""

FAILED = 70
"""Status of a process of several that failed, and of one that made no progress."""


class Stopped(Exception):
    """An evaluation was cut short by a request to stop."""


class StopRequest:
    """While entered, SIGINT (Ctrl-C) and SIGTERM are noted in `signal` instead of ending the run.

    A second Ctrl-C ends it at once. Of several processes all stop at the same step, whichever got
    the signal, and Ctrl-C is the same as SIGTERM.

    Args:
        several: whether this is one of several processes.
    """

    signal: signal.Signals | None = None

    def __init__(self, several: bool = False) -> None:
        self._several = several
        self._asked = 0

    def __enter__(self) -> StopRequest:
        # Never a handler of SIGTERM beside that of JAX, which tells the other processes: the
        # later of the two would take the place of the earlier.
        numbers = (signal.SIGINT,) if self._several else tuple(EXIT_STATUS)
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reached(self) -> bool:
        """Returns whether to stop here: every process asks, and equally often."""
        if not self._several:
            return self.signal is not None
        self._asked += 1
        if multihost_utils.reached_preemption_sync_point(self._asked):
            self.signal = signal.SIGTERM
            return True
        return False

    def pass_on(self, items: Iterable[Item]) -> Iterator[Item]:
        """Passes items on.

        Raises:
            Stopped: when the run is to stop.
        """
        for item in items:
            if self.reached():
                raise Stopped
            yield item

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        sys.stderr.write(
            f"\n{self.signal.name}: saving a checkpoint after this step; Ctrl-C ends at once\n"
        )
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)


class Watchdog:
    """While entered, ends the process if `feed` is not called for some time.

    It prints where every thread stands. Nothing else sees a process that lives and waits: its
    heartbeats come from a thread that goes on.

    Args:
        seconds: how long; 0 waits for ever.
        end: ends the process.
    """

    _CHECKS = 10

    def __init__(self, seconds: float, end: Callable[[int], object] = os._exit) -> None:
        self._seconds, self._end = seconds, end
        self._fed = 0
        self._left = threading.Event()

    def __enter__(self) -> Watchdog:
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def feed(self) -> None:
        """Says that there was progress."""
        self._fed += 1

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Passes items on, each of which is progress."""
        for item in items:
            self.feed()
            yield item

    def _watch(self) -> None:
        # Quiet intervals are counted, and not the time: a process that was suspended, by Ctrl-Z
        # or with the machine, has not hung.
        quiet, fed = 0, self._fed
        while quiet < self._CHECKS:
            if self._left.wait(self._seconds / self._CHECKS):
                return
            quiet = quiet + 1 if fed == self._fed else 0
            fed = self._fed
        faulthandler.dump_traceback(2)  # not sys.stderr: in a notebook it has no file behind it
        sys.stderr.write(
            f"error: no progress for {self._seconds:g} s (config.faults.step_timeout); above is "
            "where each thread stands\n"
        )
        kill_children()
        self._end(FAILED)


def kill_children() -> None:
    """Ends the processes that this one has started, such as those that load data."""
    for child in multiprocessing.active_children():
        child.kill()


def end_process(status: int) -> NoReturn:
    """Ends the process at once: at an orderly exit, JAX would wait for processes that are gone."""
    kill_children()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
