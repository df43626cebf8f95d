"""How many loader processes a training process starts."""

from __future__ import annotations

import dataclasses
import os
import shutil

from mobilevitv2_jax.data.parallel import cores

AUTO = -1
"""In `config.data.workers`: as many as the cores allow."""

_SHARED_MEMORY = "/dev/shm"  # where processes hand over their batches, on Linux
_BATCHES = 3  # that a loader holds at once: two in waiting, one in the making
_FEWEST_CORES = 4  # with fewer, the threads of this process do: starting others costs more


@dataclasses.dataclass(frozen=True)
class Workers:
    """Loader processes of one training process.

    Attributes:
        count: how many; 0 loads in the training process.
        reason: a few words on where the number comes from.
    """

    count: int
    reason: str

    def __str__(self) -> str:
        where = f"{self.count} processes" if self.count else "this process"
        return f"loading in {where} ({self.reason})"


def choose(asked: int, *, batch_bytes: int, sharers: int = 1) -> Workers:
    """Returns how many loader processes to start.

    Of this process's share of the cores one stays with the training itself. Batches travel
    through shared memory, of which containers have little by default: what is there sets a limit.

    Args:
        asked: how many, or `AUTO`.
        batch_bytes: size of this process's part of a batch.
        sharers: training processes on this host, this one included.
    """
    if asked != AUTO:
        return Workers(asked, f"config.data.workers={asked}")
    share = cores() // sharers
    found = f"{share} core{'s' * (share != 1)}" + (" each" if sharers > 1 else "")
    if share < _FEWEST_CORES:
        return Workers(0, found)
    if os.path.isdir(_SHARED_MEMORY):
        # Half of it: training's loaders keep theirs while an evaluation's have their own.
        free = shutil.disk_usage(_SHARED_MEMORY).free // 2 // sharers
        room = free // (_BATCHES * batch_bytes)
        if room < share - 1:
            return Workers(room, f"{found}, room for so many in {_SHARED_MEMORY}")
    return Workers(share - 1, found)
