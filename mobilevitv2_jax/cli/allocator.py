"""Memory that a process on a CPU keeps from step to step."""

from __future__ import annotations

import ctypes
import importlib.util
import os

# Of glibc's malloc.h. Nothing is given back or mapped by itself, and all threads share one heap,
# where what one of them has freed serves every other.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_OPTIONS = {_TRIM_THRESHOLD: -1, _TOP_PAD: 256 << 20, _MMAP_MAX: 0, _ARENA_MAX: 1}


def keep_freed_memory() -> bool:
    """Makes the C library keep what is freed, where JAX computes on a CPU; tells whether it does.

    XLA for CPU takes the temporary memory of a program anew for every run of it. The C library by
    itself asks the system each time, and gives it back: a page fault for every 4 kB, a third of
    the time of a training step. How many heaps there are is settled when the second thread asks
    for memory, so this comes first of all. glibc alone has these options.
    """
    if not _on_cpu():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(option, value) for option, value in _OPTIONS.items())


def _on_cpu() -> bool:
    """Tells where JAX will compute, without asking it: that would start its threads."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
