"""Size, accuracy and latency of artefacts beside `jax.jit` and Hugging Face's model."""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mobilevitv2_jax.export import artefact, examples, peers, proof
from mobilevitv2_jax.export.interface import Options, Run, backend
from mobilevitv2_jax.export.program import Program, make_program, resize_plain
from mobilevitv2_jax.training.sweep.examination import in_own_process

THREADS = (1, 2)
_WARM_UP = 5


@dataclasses.dataclass(frozen=True)
class Latency:
    """Of one batch, in milliseconds.

    Attributes:
        median: over the rounds.
        p90: nine rounds of ten took no longer.
    """

    median: float
    p90: float


@dataclasses.dataclass(frozen=True)
class _Row:
    name: str
    size: str
    accuracy: str


def table(
    paths: Sequence[str],
    source: str,
    rounds: int = 100,
    tell: Callable[[str], None] = lambda line: None,
) -> str:
    """Returns the table of some artefacts of the same weights.

    Args:
        paths: files that `mobilevitv2 export` wrote.
        source: the run, or the weights, that they were exported from.
        rounds: in each of which every one of them runs once, so that all meet the same machine.
        tell: is told what is being done.

    Raises:
        ExportError: if a file is none that was exported.
    """
    rows = []
    for number, path in enumerate(paths, start=1):
        tell(f"{number} of {len(paths)}: {path} beside JAX on pictures")
        rows.append(_judge(path, source))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    counts = [count for count in THREADS if count <= (cores or 1)]
    columns = []
    for count in counts:
        tell(f"{rounds} rounds on {count} of {cores or 'all'} cores, after compiling for them")
        columns.append(in_own_process(latencies, list(paths), source, rounds, count))
    titles = [f"{name}, {count} thread{'s' * (count > 1)}, ms"
              for count in counts for name in ("median", "p90")]  # fmt: skip
    shown = Table("artefact", "bytes", "accuracy", *titles)
    names = [pathlib.Path(path).name for path in paths]
    short = {path: name for path, name in zip(paths, names, strict=True) if names.count(name) == 1}
    others = [name for name in columns[0] if name not in {row.name for row in rows}]
    for row in [*rows, *(_Row(name, "", "") for name in others)]:
        found = [column.get(row.name) for column in columns]
        cells = [f"{x:.2f}" if x else "" for one in found for x in _both(one)]
        shown.add_row(escape(short.get(row.name, row.name)), row.size, row.accuracy, *cells)
    buffer = io.StringIO()
    Console(file=buffer, width=160).print(shown)
    return buffer.getvalue().rstrip()


def _both(found: Latency | None) -> tuple[float | None, float | None]:
    return (found.median, found.p90) if found else (None, None)


def _options(card: Any) -> Options:
    """Returns the options of an export; JSON knows no tuples."""
    given: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in card["options"].items()
    }
    return Options(**given)


def _laid_out(path: str, source: str) -> tuple[artefact.Subject, Program, Options]:
    card = artefact.read_card(path)
    options = _options(card)
    subject, _ = artefact.read(source, options, **card.get("weights", {}))
    program = make_program(subject.model, subject.processor, options, resize_plain)
    return subject, program, options


def _inputs(subject: artefact.Subject, options: Options) -> tuple[examples.Examples, np.ndarray]:
    found = examples.held_out(subject.run, subject.processor, options)
    if options.preprocess:
        return found, found.pictures
    return found, examples.scaled(subject.processor, found.pictures)


def _judge(path: str, source: str) -> _Row:
    """Returns size and held-out accuracy; without labels, the agreement with JAX."""
    subject, program, options = _laid_out(path, source)
    place = pathlib.Path(path)
    size = f"{sum(file.stat().st_size for file in artefact.files(place)):,}"
    run = backend(options.to).load(place)
    if run is None:
        return _Row(path, size, "not verified on a device")
    pictures, inputs = _inputs(subject, options)
    found = proof.compare(run, program, pictures, inputs)
    if found.accuracy is None:
        return _Row(path, size, f"{found.agreement:.2%} as JAX")
    ours, jaxs = found.accuracy
    return _Row(path, size, f"{found.metric} {ours:.2%} (JAX {jaxs:.2%})")


def latencies(paths: Sequence[str], source: str, rounds: int, threads: int) -> dict[str, Latency]:
    """Returns the latency of each artefact and of the peers, by name, on so many cores.

    The peers, `jax.jit` and Hugging Face's model where it is installed, compute the model as it
    was loaded, in the form of the first artefact.

    To be called in a process of its own: what a runtime does with fewer cores is settled when it
    is started.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    calls: dict[str, Callable[[], Any]] = {}
    others: dict[str, Callable[[], Any]] = {}
    for path in paths:
        subject, program, options = _laid_out(path, source)
        count = options.batch or 1
        found, inputs = _inputs(subject, dataclasses.replace(options, examples=count))
        inputs = np.resize(inputs, (count, *inputs.shape[1:]))  # of fewer pictures some again
        if not others:
            others["jax.jit"] = _calling(_jitted(program), inputs)
            pixels = examples.scaled(subject.processor, found.pictures)
            pixels = np.resize(pixels, (count, *pixels.shape[1:]))
            others |= peers.huggingface(subject.model, pixels, threads)
        run = backend(options.to).load(pathlib.Path(path), threads)
        if run is not None:
            calls[path] = _calling(run, inputs)
    return interleaved({**calls, **others}, rounds)


def _calling(run: Run, images: np.ndarray) -> Callable[[], Any]:
    return lambda: run(images)


def _jitted(program: Program) -> Run:
    weights = jax.device_put(program.weights)
    function = jax.jit(program.run)
    return lambda images: tuple(map(np.asarray, function(weights, images)))


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Latency]:
    """Times calls in turn, so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(_WARM_UP + rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number >= _WARM_UP:
                times[name].append(1000 * (time.perf_counter() - began))
    return {
        name: Latency(float(np.median(found)), float(np.percentile(found, 90)))
        for name, found in times.items()
    }
