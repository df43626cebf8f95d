"""Timing in turns, tables, and what a figure depends on."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Measured = Mapping[str, Sequence[float]]
"""Seconds of each round by name; the same number for all."""


def environment() -> str:
    """Returns the versions, threads and processor that figures hold for."""
    versions = []
    for name in ("jax", "jaxlib", "flax", "torch", "timm", "libtpu"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return (
        f"{', '.join(versions)}\n"
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, which both sides may use all"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line for line in file if "model name" in line).partition(":")[2].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def in_turns(functions: Mapping[str, Callable[[], Any]], rounds: int) -> Measured:
    """Times functions that return when their work is done; each is called once before."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return seconds


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Takes them from values."""
        return cls(statistics.median(values), min(values), max(values))

    def __format__(self, form: str) -> str:
        return f"{self.median:{form}} ({self.least:{form}} to {self.most:{form}})"


def table(title: str, measured: Measured, reference: str) -> str:
    """Returns milliseconds, and how many times as fast as `reference` everything is."""
    lines = [title, f"  {'':40} {'milliseconds':32} times as fast as {reference}"]
    for name, seconds in measured.items():
        own = Spread.of([1e3 * value for value in seconds])
        pairs = zip(measured[reference], seconds, strict=True)
        ratio = Spread.of([theirs / ours for theirs, ours in pairs])
        lines.append(f"  {name:40} {f'{own:.1f}':32} {ratio:.2f}")
    return "\n".join(lines) + "\n"
