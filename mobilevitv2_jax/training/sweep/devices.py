"""Which devices and cores each of the points that run side by side gets.

This module initialises no backend: the process of a sweep must not hold what its points need.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from mobilevitv2_jax.errors import ConfigError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclasses.dataclass(frozen=True)
class Host:
    """What JAX finds on this machine.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        kind: the devices' name.
        devices: how many there are.
    """

    platform: str
    kind: str
    devices: int


@dataclasses.dataclass(frozen=True)
class Slot:
    """Room for one point at a time.

    Attributes:
        environment: variables that its process gets.
        cores: the processor cores that it may use; empty: all.
    """

    environment: Mapping[str, str]
    cores: frozenset[int]


def devices_per_point(host: Host, parallel: int) -> int:
    """Returns how many devices each of `parallel` points at a time has to itself.

    Raises:
        ConfigError: if there are too few.
    """
    if host.platform == "tpu" and parallel > 1:
        raise ConfigError(
            "--parallel must be 1 on a TPU host, whose chips belong to one process at a time, "
            f"got {parallel}"
        )
    if host.platform == "cpu":  # virtual devices are each process's own; the cores are shared out
        return host.devices
    if parallel > host.devices:
        raise ConfigError(
            f"--parallel must be at most {host.devices}, the number of devices ({host.kind}), "
            f"got {parallel}"
        )
    return host.devices // parallel


def make_slots(
    host: Host, parallel: int, environment: Mapping[str, str], cores: frozenset[int]
) -> list[Slot]:
    """Shares out the devices and the cores of this machine.

    Args:
        host: the machine.
        parallel: how many points run at a time.
        environment: of this process; devices that it hides stay hidden.
        cores: those that this process may use; empty where the system does not tell.

    Raises:
        ConfigError: if there are too few of either.
    """
    each = devices_per_point(host, parallel)
    if cores and parallel > len(cores):
        raise ConfigError(
            f"--parallel must be at most {len(cores)}, the number of processor cores, "
            f"got {parallel}"
        )
    shares = _share(sorted(cores), parallel)
    if host.platform != "gpu" or parallel == 1:
        return [Slot({}, frozenset(share)) for share in shares]
    visible = environment.get(_VISIBLE, "").split(",")
    if len(visible) != host.devices:
        visible = list(map(str, range(host.devices)))
    return [
        Slot({_VISIBLE: ",".join(visible[index * each : (index + 1) * each])}, frozenset(share))
        for index, share in enumerate(shares)
    ]


def own_cores() -> frozenset[int]:
    """Returns the cores that this process may use; none where the system does not tell."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def _share(items: list[int], parts: int) -> list[list[int]]:
    bounds = [len(items) * index // parts for index in range(parts + 1)]
    return [items[low:high] for low, high in zip(bounds, bounds[1:], strict=False)]
