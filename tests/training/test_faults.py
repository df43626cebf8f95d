"""Signals: noted, answered once, and given back."""

import os
import signal

import pytest

from mobilevitv2_jax.training.faults import EXIT_STATUS, StopRequest


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
