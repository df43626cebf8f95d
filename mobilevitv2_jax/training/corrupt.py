"""The records of the training data that could not be decoded: named, counted, and too many."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import numpy as np

from mobilevitv2_jax.data.loader import describe
from mobilevitv2_jax.data.sources import Source
from mobilevitv2_jax.errors import DataError
from mobilevitv2_jax.training.mesh import all_processes

_NAMED = 10  # at once; more would push all else off the screen


class CorruptRecords:
    """Keeps account of the records that were replaced by a neighbour.

    Attributes:
        limit: how many different ones end the run.
        say: tells a line.
    """

    def __init__(self, source: Source, limit: int, say: Callable[[str], None]) -> None:
        self.limit, self.say = limit, say
        self._source = source
        self._here: set[int] = set()  # that this process has met
        self._told: set[int] = set()  # on any process

    def add(self, batch: dict[str, np.ndarray]) -> None:
        """Takes note of a batch.

        Raises:
            DataError: if this process alone has met more than the limit.
        """
        if batch["corrupt"].any():
            self._here |= set(batch["index"][batch["corrupt"]].tolist())
            self._check(self._here)

    def settle(self) -> int:
        """Names what is new, of all processes: each of them has to call it.

        Returns:
            The number of different records met so far.

        Raises:
            DataError: if they are more than the limit.
        """
        met = _of_all(self._here)
        new = sorted(met - self._told)
        self._told = met
        if new:
            self.say(
                f"{len(met)} records of the training data could not be decoded and were replaced "
                f"by their neighbours; new: {self._names(new)}"
            )
        self._check(met)
        return len(met)

    def _check(self, met: set[int]) -> None:
        if len(met) > self.limit:
            raise DataError(
                f"{len(met)} records of {self._source.fingerprint} could not be decoded, and "
                f"config.data.max_corrupt is {self.limit}: {self._names(sorted(met))}. Mend or "
                "remove them, or raise the limit"
            )

    def _names(self, indices: Iterable[int]) -> str:
        indices = list(indices)
        shown = [describe(self._source, index) for index in indices[:_NAMED]]
        return "; ".join(shown) + "; ..." * (len(indices) > _NAMED)


def _of_all(indices: set[int]) -> set[int]:
    """Returns the union over all processes."""
    if jax.process_count() == 1:
        return set(indices)
    longest = int(all_processes(np.array([len(indices)])).max())
    row = np.full(longest, -1, np.int32)
    row[: len(indices)] = sorted(indices)
    return set(all_processes(row).tolist()) - {-1} if longest else set()
