"""The training step compiled for TPU, without one: what it reads and writes for each image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.measure import environment
from benchmarks.models import experiment_config
from mobilevitv2_jax.training.pod import compile_step

TOPOLOGY, IMAGES = "v5e:2x2", 128  # images of each of the four chips


def run(options: Any) -> Iterator[str]:
    """Yields the compiler's counts: 4 to 5 minutes on two cores."""
    yield environment() + "\n"
    # A program for chips that are not there can be put into the cache, but not be read back.
    jax.config.update("jax_enable_compilation_cache", False)
    report, text = compile_step(experiment_config(4 * IMAGES, options.size), TOPOLOGY)
    per_image = report.traffic / report.images / 1e6
    title = f"training step, bfloat16, {IMAGES} images per chip, {TOPOLOGY}"
    yield f"{title}: {per_image:.0f} MB per image\n{text}"
