"""The window of a profiler's trace; what a run does with it stands in test_loop.py."""

import jax.numpy as jnp
import pytest
from etils import epath
from object_store import ObjectStore
from tiny import tiny_config

from mobilevitv2_jax.training.profiling import ProfilerWindow


@pytest.fixture
def turns(monkeypatch):
    """Puts a recorder in the place of the profiler."""
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda *_, **__: calls.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
    return calls


def window(directory, start, active=True):
    config = tiny_config({"profile.start": start, "profile.steps": 3})
    return ProfilerWindow(config, directory, lambda text: None, active)


@pytest.mark.parametrize(
    ("start", "steps", "expected"),
    [
        (0, range(1, 9), []),
        (2, range(1, 9), ["start 2", "stop 5"]),
        (1, range(1, 9), ["start 1", "stop 4"]),
        (2, range(4, 9), ["start 4", "stop 5"]),  # continued inside the window
        (2, range(5, 9), []),  # and behind it
        (7, range(1, 9), ["start 7", "stop None"]),  # the run ends first
    ],
)
def test_the_window_opens_and_closes_once_wherever_a_run_begins(
    turns, tmp_path, start, steps, expected
):
    profiler, seen = window(tmp_path, start), []
    for step in (*steps, None):
        profiler.turn(step, jnp.zeros(()))
        seen += [f"{call} {step}" for call in turns]
        turns.clear()
    profiler.close()
    assert seen == expected and turns == []


def test_a_process_that_is_not_the_first_traces_nothing(turns, tmp_path):
    profiler = window(tmp_path, 1, active=False)
    profiler.turn(1, jnp.zeros(()))
    profiler.close()
    assert turns == []


def test_a_trace_reaches_a_run_on_an_object_store(object_store):
    profiler = window(epath.Path(ObjectStore.ROOT) / "run", 1)
    for step in (1, None):
        profiler.turn(step, jnp.zeros(()))
    names = ObjectStore.names()
    assert all(name.startswith("run/profile/plugins/profile/") for name in names)
    assert {name.rpartition(".")[2] for name in names} >= {"pb", "gz"}
