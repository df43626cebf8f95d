"""What all tests share: cores, one compilation cache that subprocesses inherit, an object store."""

import atexit
import os
import shutil
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Threads of torch that wait for each other spin, and several tests run at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before anything imports jax: a program that several tests need is compiled once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="mobilevitv2-jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
# By default jax keeps what took a second. Each process of a test compiles dozens of small programs.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_configure(config):
    """Compiles with less effort: most programs of the tests run once or a few times.

    Those of the export tests train a model first.
    """
    if config.option.markexpr != "export":
        flag = "--xla_backend_optimization_level=0"
        os.environ["XLA_FLAGS"] = f"{flag} {os.environ.get('XLA_FLAGS', '')}".strip()


def pytest_xdist_auto_num_workers(config):
    """Returns on how many cores to test: slow tests keep deadlines, and have the machine alone."""
    return 0 if config.option.markexpr == "slow" else min(os.cpu_count() or 1, 4)


@pytest.fixture
def object_store(monkeypatch):
    """An empty object store at `ObjectStore.ROOT`."""
    import object_store

    object_store.install(monkeypatch)
