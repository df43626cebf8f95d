"""How many loader processes there are."""

import shutil

import pytest

from mobilevitv2_jax.data import workers


def choose(monkeypatch, asked=workers.AUTO, *, cores, free=10**12, batch_bytes=10**6, sharers=1):
    """Returns the choice on a host with so many cores and so much shared memory."""
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(workers, "cores", lambda: cores)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(workers.os.path, "isdir", lambda path: True)
    return str(workers.choose(asked, batch_bytes=batch_bytes, sharers=sharers))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"cores": 1}, "loading in this process (1 core)"),
        ({"cores": 2}, "loading in this process (2 cores)"),
        ({"cores": 4}, "loading in 3 processes (4 cores)"),
        ({"cores": 112}, "loading in 111 processes (112 cores)"),
        ({"cores": 64, "sharers": 8}, "loading in 7 processes (8 cores each)"),
        ({"cores": 8, "asked": 0}, "loading in this process (config.data.workers=0)"),
        ({"cores": 8, "asked": 20}, "loading in 20 processes (config.data.workers=20)"),
    ],
)
def test_one_core_of_those_that_a_process_has_is_left_to_training(monkeypatch, options, line):
    assert choose(monkeypatch, **options) == line


@pytest.mark.parametrize(
    ("free", "count"),
    [
        (64 * 2**20, "this process"),  # what Docker gives by default
        (8 * 2**30, "7 processes"),
        (64 * 2**30, "15 processes"),
    ],
)
def test_no_more_batches_are_made_than_shared_memory_holds(monkeypatch, free, count):
    batch_bytes = 1024 * 256 * 256 * 3  # that of the published recipe, on one host
    line = choose(monkeypatch, cores=16, free=free, batch_bytes=batch_bytes)
    assert line.startswith(f"loading in {count} (16 cores")
    assert ("room for so many in /dev/shm" in line) == (free < 64 * 2**30)
