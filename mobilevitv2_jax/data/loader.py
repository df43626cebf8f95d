"""Batches from a source, with grain.

The stream is a function of (seed, step) alone: the global batches, their rows and their random
values are the same for any number of processes, workers and threads, and resuming at a step is
slicing at it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Int

from mobilevitv2_jax.data.augment import Example
from mobilevitv2_jax.data.image import CorruptError, decode
from mobilevitv2_jax.data.sources import Source

Batch = dict[str, np.ndarray]

_NEIGHBOURS = 16  # tried for a record that cannot be decoded; more in a row is a broken data set


class Batches(Iterator[Batch]):
    """An iterator over batches that owns threads and processes: close it, or use it in `with`."""

    def __init__(self, iterator: grain.DatasetIterator) -> None:
        self._iterator = iterator
        self._started = False

    def __next__(self) -> Batch:
        if self._started:
            return next(self._iterator)
        self._started = True
        with _unsignalled():
            return next(self._iterator)

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads and processes; may be called again."""
        self._iterator.close()


def train_batches(
    source: Source,
    transform: Callable[[Example, np.random.Generator], Example],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
) -> Batches:
    """Returns the endless stream of this process's training batches.

    Each epoch is a new order of all examples; a batch may span two epochs. With
    b = batch_size / process_count, and the processes' rows in the order of `process_index`
    making up the global batch, a batch holds

    - "image", uint8 [b, height, width, 3],
    - "label", int32 [b], or uint8 [b, height, width] of a segmentation,
    - "index", int64 [b]: the example's index in the source,
    - "corrupt", bool [b]: the record could not be decoded; image and label are those of the
      next one in the source that can.

    Args:
        source: the examples.
        transform: picklable; makes the images equal in size. Its generator is a function of
            `seed` and of the position in the stream.
        batch_size: examples per step, over all processes.
        seed: of the order and of the transform.
        start_step: the first step to deliver.
        process_index: which of the processes this is.
        process_count: how many processes share a batch.
        workers: loader processes; 0 loads in this one.
        threads: reading threads of each loader; 0 reads when asked.

    Raises:
        ValueError: for a batch size that `process_count` does not divide, or an index out of
            range.
    """
    rows = _rows(batch_size, process_index, process_count)
    records = _Records(source)
    dataset = grain.MapDataset.source(records).seed(seed).shuffle().repeat(None)
    # Random values before anything that depends on the process; batch first, then every H-th:
    # so that rows, their order and their values do not depend on the number of processes.
    dataset = dataset.random_map(transform)
    dataset = dataset.batch(rows, drop_remainder=True)[process_index::process_count]
    return _iterate(dataset[start_step:], workers, threads)


def evaluation_batches(
    source: Source,
    transform: Callable[[Example], Example],
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
) -> Batches:
    """Returns this process's batches of one pass over the source, in its order.

    Over all processes every example comes exactly once, in `evaluation_steps` batches on each:
    the last ones are padded. Arguments, entries of a batch and errors are those of
    `train_batches`, and further

    - "mask", float32 [b]: 1 for an example that counts, 0 for padding and for a corrupt one.

    Padding has "index" -1 and is never corrupt: evaluated + corrupt = total.
    """
    _rows(batch_size, process_index, process_count)  # refuses a batch size of 0, a divisor below
    positions = np.arange(evaluation_steps(len(source), batch_size) * batch_size)
    return planned_batches(
        source,
        transform,
        order=np.minimum(positions, len(source) - 1),
        counted=positions < len(source),
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        workers=workers,
        threads=threads,
    )


def planned_batches(
    source: Source,
    transform: Callable[[Example], Example],
    *,
    order: Int[np.ndarray, " positions"],
    counted: Bool[np.ndarray, " positions"],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
) -> Batches:
    """Returns this process's batches of examples in a given order: see `evaluation_batches`.

    Args:
        source: the examples.
        transform: picklable; makes the images of a batch equal in size.
        order: which example stands at each position; as many as whole batches hold.
        counted: False where an example stands for padding.
        batch_size: examples per batch, over all processes.
        process_index: which of the processes this is.
        process_count: how many processes share a batch.
        workers: loader processes; 0 loads in this one.
        threads: reading threads of each loader; 0 reads when asked.
    """
    rows = _rows(batch_size, process_index, process_count)
    records = _Planned(_Records(source), order, counted)
    dataset = grain.MapDataset.range(len(order)).map(records).map(transform)
    dataset = dataset.batch(rows, drop_remainder=True)[process_index::process_count]
    return _iterate(dataset, workers, threads)


def describe(source: Source, index: int) -> str:
    """Returns words on a record that cannot be decoded: its name, and what is wrong with it."""
    name = f"record {index} of {source.fingerprint}"
    try:
        record = source[index]
        name += f" ({record['name']})" if "name" in record else ""
        if isinstance(record["image"], bytes):
            decode(record["image"])
    except CorruptError as error:
        return f"{name}: {error}"
    return name


def survey(
    source: Source, threads: int = 2, over: Callable[[Iterable], Iterable] = iter
) -> tuple[Int[np.ndarray, "examples 2"], list[str]]:
    """Reads every example once, to learn the sizes of the maps before anything is planned.

    Args:
        source: the examples.
        threads: that read.
        over: what is found of each example is taken through it; it may watch it go by.

    Returns:
        Height and width of each map, 0 where image or map are damaged; and what is wrong with
        those, a line each.
    """

    def read(index: int) -> tuple[tuple[int, int], str]:
        try:
            record = source[index]
            if isinstance(record["image"], bytes):
                decode(record["image"])
        except CorruptError:
            return (0, 0), describe(source, index)
        return record["label"].shape, ""

    with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
        sizes, problems = zip(*over(pool.map(read, range(len(source)))), strict=True)
    return np.array(sizes), list(filter(None, problems))


def evaluation_steps(examples: int, batch_size: int) -> int:
    """Returns the number of batches of one evaluation, the same on every process."""
    return math.ceil(examples / batch_size)


@dataclasses.dataclass(frozen=True)
class _Records:
    """The decoded records of a source, each with its index."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        error: CorruptError | None = None
        for step in range(min(len(self), _NEIGHBOURS + 1)):
            try:
                record = self.source[(index + step) % len(self)]
                image = record["image"]
                image = image if isinstance(image, np.ndarray) else decode(image)
            except CorruptError as caught:
                error = error or caught
                continue
            return {
                "image": image,
                "label": record["label"],
                "index": np.int64(index),
                "corrupt": np.bool_(step > 0),
            }
        raise ValueError(
            f"record {index} of {self.source.fingerprint} cannot be decoded, "
            f"nor can any of the {step} after it"
        ) from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if multiprocessing.parent_process() is not None:
            _settle_in_worker()


@functools.cache
def _settle_in_worker() -> None:
    cv2.setNumThreads(0)  # the cores are shared out by processes already
    threading.Thread(target=_end_with_parent, daemon=True).start()


@contextlib.contextmanager
def _unsignalled() -> Iterator[None]:
    """Keeps SIGINT and SIGTERM for ever from the processes and threads that are started inside.

    Ctrl-C of a terminal, and launchers, signal all processes of a group, and a training that is
    to stop still takes batches up to the step at which all of its processes do. What is blocked is
    inherited: a worker that ignored them would be lost while it starts.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Ends a worker whose training was killed: it would wait for ever for room in its queue."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@dataclasses.dataclass(frozen=True)
class _Planned:
    """Maps every position of a planned pass to a record with its mask."""

    records: _Records
    order: np.ndarray
    counted: np.ndarray

    def __call__(self, position: int) -> Example:
        record = self.records[int(self.order[position])]
        if not self.counted[position]:
            record |= {"index": np.int64(-1), "corrupt": np.bool_(False)}
        counts = self.counted[position] and not record["corrupt"]
        return {**record, "mask": np.float32(counts)}


def _rows(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in [0, {process_count}), got {process_index}")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size must be a positive multiple of the {process_count} processes, "
            f"got {batch_size}"
        )
    return batch_size // process_count


def _iterate(dataset: grain.MapDataset, workers: int, threads: int) -> Batches:
    # An element here is a whole batch: two per thread are enough, grain's 500 would not fit.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads a flag, also where no absl app runs
        iterable = iterable.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        )
    return Batches(iter(iterable))
