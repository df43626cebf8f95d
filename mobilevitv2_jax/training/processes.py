"""Several processes of one job: how they find each other, and whether they fit together."""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mobilevitv2_jax.errors import ConfigError

SHUTDOWN_SECONDS = 60
"""How long a process that is done waits for the others."""

_PATIENCE = 10.0  # seconds in which the others must be there, and a file of one host show on all


def start(arguments: Mapping[str, Any], promised: int | None) -> None:
    """Joins the other processes of the job.

    Args:
        arguments: those of `jax.distributed.initialize`.
        promised: how many processes the launcher has started, where it says so.

    Raises:
        ConfigError: if the others are not found, or are not as many as promised.
    """
    # Said while it waits: JAX itself gives up after 300 s with an abort that names no address.
    place = arguments.get("coordinator_address", "the place that the launcher names")
    text = f"still waiting for the other processes, at {place}: is every one of them started?\n"
    waiting = threading.Timer(_PATIENCE, sys.stderr.write, [text])
    waiting.daemon = True
    waiting.start()
    # Invariant: before any other call of JAX, which would start a backend of this process alone.
    try:
        jax.distributed.initialize(**arguments, shutdown_timeout_seconds=SHUTDOWN_SECONDS)
    except ValueError as error:
        raise ConfigError(
            "--distributed found no launcher that says how many processes there are (Cloud TPU, "
            f"Slurm, GKE, Open MPI): {error} Give --coordinator, --num-processes and --process-id"
        ) from error
    except RuntimeError as error:
        raise ConfigError(f"this process could not join the others: {error}") from error
    finally:
        waiting.cancel()
    found = jax.process_count()
    if promised not in (None, found):
        raise ConfigError(
            f"the launcher promises {promised} processes, and JAX has found {found}: every "
            "process must be started, with the same options"
        )


def started() -> bool:
    """Returns whether this is one of several processes (or was declared to be)."""
    return jax.distributed.is_initialized()


def check_declared() -> None:
    """Checks that JAX did not find other processes by itself, as it does on a TPU pod.

    Raises:
        ConfigError: if it did: checkpoints and preemption need them to be declared.
    """
    if jax.process_count() > 1 and not started():
        raise ConfigError(f"this is one of {jax.process_count()} processes: add --distributed")


def check_same(what: str, value: int) -> None:
    """Checks that a number is the same on every process.

    Raises:
        ConfigError: if it is not; all processes raise it.
    """
    values = multihost_utils.process_allgather(np.int32(value))
    for index in np.flatnonzero(values != values[0]):
        raise ConfigError(
            f"the processes differ in {what}: process 0 has {values[0]}, "
            f"process {index} has {values[index]}"
        )


def check_shared(directory: epath.Path) -> None:
    """Checks that every process sees what process 0 writes into the run directory.

    Raises:
        ConfigError: if one does not; all processes raise it.
    """
    if jax.process_count() == 1:
        return
    # A name that is new each time: what an earlier job left there is not taken for this one's.
    token = multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))
    path = directory / f".shared-{token}"
    if jax.process_index() == 0:
        path.write_text("")
    multihost_utils.sync_global_devices("the first process has written its token")
    seen = multihost_utils.process_allgather(np.array(_appears(path)))
    if jax.process_index() == 0:
        path.unlink()
    for index in np.flatnonzero(~seen):
        raise ConfigError(
            f"process {index} does not see what process 0 writes to the workdir {directory}: all "
            "processes need the same --workdir, on storage that they share"
        )


def _appears(path: epath.Path) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
