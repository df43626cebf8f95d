"""Work shared out among processes, so that nothing of it stays behind when one of them dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar, cast

from mobilevitv2_jax.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def shared_out(
    function: Callable[[Sequence[T]], Iterator[R]], items: Sequence[T], processes: int
) -> Iterator[Iterator[R]]:
    """Gives every process its part of the items; inside is what `function` yields, as it comes.

    A process holds but one end of its pipe: when this process dies, however it does, the next
    result is the last that another one computes. Leaving the context ends all of them.

    Args:
        function: takes items and yields results; picklable. A `DataError` it raises is raised
            here, too.
        items: what there is to do.
        processes: how many; 0 works in this one.

    Raises:
        DataError: from the iterator inside, also when a process dies.
    """
    if not processes:
        yield function(items)
        return
    context = multiprocessing.get_context("spawn")  # the caller may have threads
    started: dict[Connection, SpawnProcess] = {}
    try:
        for number in range(min(processes, len(items))):
            here, there = context.Pipe(duplex=False)
            arguments = (there, function, items[number::processes])
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            there.close()
            started[here] = process
        yield _received(started)
    finally:
        for process in started.values():
            process.terminate()
            process.join()


def _received(started: Mapping[Connection, SpawnProcess]) -> Iterator[Any]:
    pipes = list(started)
    while pipes:
        for pipe in cast(list[Connection], wait(pipes)):
            try:
                result = pipe.recv()
            except EOFError:
                pipes.remove(pipe)
                started[pipe].join()
                status = started[pipe].exitcode
                if status:
                    raise DataError(f"a process at work ended with status {status}") from None
                continue
            if isinstance(result, DataError):
                raise result
            yield result


def _work(
    pipe: Connection, function: Callable[[Sequence[T]], Iterator[R]], items: Sequence[T]
) -> None:
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # whoever began this has gone
        try:
            for result in function(items):
                pipe.send(result)
        except DataError as error:
            pipe.send(error)
