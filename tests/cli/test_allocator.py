"""Freed memory stays with a process that computes on a CPU."""

import subprocess
import sys

import pytest

from mobilevitv2_jax.cli import allocator

FAULTS = """
import resource, sys, threading
from mobilevitv2_jax.cli.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("cannot be kept")
def use():
    for _ in range(20):
        bytearray(100_000_000)
threads = [threading.Thread(target=use) for _ in range(2)]
for thread in threads:
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the options are those of glibc")
def test_memory_of_every_thread_is_taken_from_the_system_once(monkeypatch):
    """Of a hundred megabytes, 25,000 pages: forty times, or once for both threads."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    kept, anew = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS, mode], text=True))
        for mode in ("keep", "anew")
    )
    assert kept < 100_000 < 900_000 < anew


@pytest.mark.parametrize(
    ("platforms", "on_cpu"), [("cpu", True), ("cuda", False), ("tpu,cpu", False)]
)
def test_only_a_process_on_a_cpu_keeps_it(monkeypatch, platforms, on_cpu):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert allocator._on_cpu() == on_cpu


def test_where_nothing_is_said_an_accelerator_s_plugin_tells(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    found = {"libtpu"}
    monkeypatch.setattr(allocator.importlib.util, "find_spec", lambda name: name in found or None)
    assert not allocator._on_cpu()
    found.clear()
    assert allocator._on_cpu()
