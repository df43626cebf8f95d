"""How long the training step is traced and compiled on a CPU, and read from the cache.

    python -m benchmarks.compilation BATCH SIZE

does it once, with the cache that JAX_COMPILATION_CACHE_DIR names, and prints the seconds as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.measure import environment
from benchmarks.models import CPU_BATCH, experiment_config, lowered_step


def run(options: Any) -> Iterator[str]:
    """Yields the table: two processes, of which the first finds an empty cache."""
    yield environment() + "\n"
    batch = options.batch or CPU_BATCH
    with tempfile.TemporaryDirectory() as cache:
        first, second = (_in_a_process(batch, options.size, cache) for _ in range(2))
    rows = {
        "tracing and lowering": min(first["lower"], second["lower"]),
        "compiling, without a cache": first["compile"],
        "compiling, from the cache": second["compile"],
    }
    yield f"training step, {batch} x {options.size}, CPU"
    yield from (f"  {name:40} {value:.1f} s" for name, value in rows.items())


def _in_a_process(batch: int, size: int, cache: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.compilation", str(batch), str(size)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _once(batch: int, size: int) -> dict[str, float]:
    began = time.perf_counter()
    lowered = lowered_step(experiment_config(batch, size, dtype="float32"))[1]
    traced = time.perf_counter()
    lowered.compile()
    return {"lower": traced - began, "compile": time.perf_counter() - traced}


if __name__ == "__main__":
    print(json.dumps(_once(*map(int, sys.argv[1:]))))
