"""Which process of how many this is: declared by options, never guessed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from mobilevitv2_jax.arguments import without as without_options
from mobilevitv2_jax.cli import flags
from mobilevitv2_jax.errors import ConfigError

_EXPLICIT = ("coordinator", "num_processes", "process_id")
_OPTIONS = ["--" + name.replace("_", "-") for name in _EXPLICIT]

_HEARTBEAT_SECONDS = 30


def define(values: absl_flags.FlagValues) -> None:
    """Adds the options that declare several processes."""
    flags.define(
        values,
        "distributed",
        bool,
        "one of several processes: Cloud TPU, Slurm or GKE say which; --distributed=false: alone, "
        "whatever they say",
    )
    flags.define(
        values, "coordinator", str, "HOST:PORT of process 0, where nothing else says which"
    )
    flags.define(values, "num_processes", int, "how many processes there are; with --coordinator")
    flags.define(values, "process_id", int, "which one this is, from 0; with --coordinator")
    flags.define(
        values,
        "heartbeat_seconds",
        int,
        f"silence after which a process counts as dead and all end; default {_HEARTBEAT_SECONDS}",
    )


def start(values: absl_flags.FlagValues, environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes, if the options say that there are any.

    Raises:
        ConfigError: if the options contradict each other or the environment, or the environment
            looks like that of several processes and no option says so.
    """
    arguments, promised = read(values, environment)
    # Here and not above: what the options and the environment say is judged without JAX.
    from mobilevitv2_jax.training import processes

    if arguments is not None:
        processes.start(arguments, promised)
    elif values.distributed is None:
        processes.check_declared()


def read(
    values: absl_flags.FlagValues, environment: Mapping[str, str]
) -> tuple[dict[str, Any] | None, int | None]:
    """Returns the arguments of `jax.distributed.initialize`, and the number of processes.

    The arguments are None for a process on its own; the number is None where nothing says it.

    Raises:
        ConfigError: as `start` does.
    """
    explicit = {name: values[name].value for name in _EXPLICIT if values[name].present}
    heartbeat = values.heartbeat_seconds
    if heartbeat is not None and heartbeat < 1:
        raise ConfigError(f"--heartbeat-seconds must be at least 1, got {heartbeat}")
    arguments: dict[str, Any] = {"heartbeat_timeout_seconds": heartbeat or _HEARTBEAT_SECONDS}
    reason, promised = _promise(environment)
    if explicit:
        coordinator, count, index = _check_explicit(explicit, values.distributed)
        if promised not in (None, count):
            raise ConfigError(f"--num-processes is {count}, but {reason}")
        arguments |= {"coordinator_address": coordinator, "num_processes": count}
        # The options are all there is to know: what else JAX would find out is not asked for.
        return arguments | {"process_id": index, "cluster_detection_method": "deactivate"}, count
    if values.distributed:
        return arguments, promised
    if values.distributed is None and reason and promised != 1:
        raise ConfigError(
            f"this looks like one of several processes ({reason}), and each would be a job of its "
            "own: add --distributed to make them one, or --distributed=false to keep them apart"
        )
    return None, None


def without(argv: Sequence[str]) -> list[str]:
    """Returns the arguments without those that say which process this is.

    The launcher gives them anew, with another port, when the same command is started again.
    """
    return without_options(argv, _OPTIONS)


def _check_explicit(given: Mapping[str, Any], distributed: bool | None) -> tuple[str, int, int]:
    if distributed is not None:
        raise ConfigError(f"--distributed and {_OPTIONS[0]} exclude each other: give one of them")
    missing = [
        option for name, option in zip(_EXPLICIT, _OPTIONS, strict=True) if name not in given
    ]
    if missing:
        lacking = ", ".join(missing)
        raise ConfigError(f"{', '.join(_OPTIONS)} go together; without {lacking} they say nothing")
    coordinator, count, index = (given[name] for name in _EXPLICIT)
    if not re.fullmatch(r".+:\d+", coordinator):
        raise ConfigError(
            f"--coordinator must be HOST:PORT, such as 10.0.0.2:8476, got {coordinator!r}"
        )
    if count < 1:
        raise ConfigError(f"--num-processes must be at least 1, got {count}")
    if not 0 <= index < count:
        raise ConfigError(f"--process-id must be at least 0 and below {count}, got {index}")
    return coordinator, count, index


def _promise(environment: Mapping[str, str]) -> tuple[str, int | None]:
    """Returns what in the environment tells of several processes, and how many it says."""
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    slices = environment.get("MEGASCALE_NUM_SLICES") or "1"
    if hosts:
        count = len(hosts.split(",")) * int(slices)
        more = f" on each of {slices} slices" if slices != "1" else ""
        return f"TPU_WORKER_HOSTNAMES={hosts}{more}", count
    # What a step of Slurm has comes before what its allocation has.
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        if environment.get(name, "").isdigit():
            return f"{name}={environment[name]}", int(environment[name])
    index = environment.get("JOB_COMPLETION_INDEX")  # it says which, and not of how many
    return (f"JOB_COMPLETION_INDEX={index}", None) if index else ("", None)


def started() -> bool:
    """Returns whether this process has been made one of several."""
    # Where JAX was not even loaded, it was not; and loading it to ask would take seconds.
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def finish() -> None:
    """Waits for the other processes, if there are any, so that none is missed at its end."""
    if started():
        sys.modules["jax"].distributed.shutdown()


def end(status: int) -> None:
    """Ends this process without waiting for the others."""
    from mobilevitv2_jax.training.faults import end_process

    end_process(status)
