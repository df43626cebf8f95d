"""Signals: noted, answered once, and given back; and a watchdog for what makes no progress."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from mobilevitv2_jax.training import faults
from mobilevitv2_jax.training.faults import EXIT_STATUS, Stopped, StopRequest, Watchdog


def test_the_exit_statuses_are_those_that_are_promised():
    assert EXIT_STATUS == {signal.SIGINT: 130, signal.SIGTERM: 75}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_said_instead_of_ending_the_process(number, capsys):
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal is number
    assert f"{number.name}: saving a checkpoint after this step" in capsys.readouterr().err


def test_the_handlers_that_stood_before_are_given_back():
    def mine(*_):
        pass

    before = {number: signal.signal(number, mine) for number in EXIT_STATUS}
    try:
        with StopRequest():
            assert all(signal.getsignal(number) is not mine for number in EXIT_STATUS)
        assert all(signal.getsignal(number) is mine for number in EXIT_STATUS)
        with pytest.raises(KeyError), StopRequest():
            raise KeyError
        assert all(signal.getsignal(number) is mine for number in EXIT_STATUS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_first_signal_ends_at_once(first, capsys):
    with StopRequest() as stop:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal is first


def test_a_second_sigterm_changes_nothing(capsys):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is signal.SIGTERM


def test_every_request_starts_without_a_signal(capsys):
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.signal is None


def test_a_request_is_reached_at_the_first_step_after_the_signal(capsys):
    with StopRequest() as stop:
        assert not stop.reached()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached()
        with pytest.raises(Stopped):
            next(stop.pass_on([1]))


def test_of_several_processes_sigterm_is_left_to_jax_and_ctrl_c_becomes_one(monkeypatch, capsys):
    received, agreed = [], []
    monkeypatch.setattr(
        faults.multihost_utils, "reached_preemption_sync_point", lambda step: step in agreed
    )
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("SIGTERM"))
    try:
        with StopRequest(several=True) as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert received == ["SIGTERM"]
            assert not stop.reached()  # the processes have not agreed on a moment yet
            agreed.append(2)  # the second time that they ask
            assert stop.reached()
            assert EXIT_STATUS[stop.signal] == 75
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


HANGING = """
import sys, time
from mobilevitv2_jax.training.faults import Watchdog

def wait_for_ever():
    while True:
        time.sleep(1)

with Watchdog(1) as watchdog:
    for _ in watchdog.watch(range(15)):
        time.sleep(0.1)
    print("fed", flush=True)
    wait_for_ever()
"""


@pytest.mark.slow
def test_a_process_without_progress_ends_with_its_stacks_and_the_cause():
    done = subprocess.run(
        [sys.executable, "-c", HANGING],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (70, "fed\n"), done.stderr
    assert "in wait_for_ever" in done.stderr
    assert "no progress for 1 s (config.faults.step_timeout)" in done.stderr.splitlines()[-1]


def test_a_watchdog_that_is_left_or_has_no_limit_ends_nothing():
    ended = threading.Event()
    for seconds in (0.1, 0):
        with Watchdog(seconds, end=lambda status: ended.set()):
            pass
    with Watchdog(0, end=lambda status: ended.set()):
        assert not ended.wait(0.3)
    assert not ended.is_set()
