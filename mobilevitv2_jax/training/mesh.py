"""Devices and how arrays lie on them.

The same program runs on one device and on many: the batch is split over the mesh, everything
else is on every device or, where that is asked for, large arrays are split too, and the compiler
places the collectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from mobilevitv2_jax.errors import ConfigError

DATA, FSDP = "data", "fsdp"
"""Names of the mesh's axes. Batches are split over both, large arrays of the state over "fsdp"."""

# Peak of dense bfloat16 arithmetic, TFLOP/s per device, from the makers' data sheets.
_PEAK_TFLOPS = {
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5p": 459.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
}


def make_mesh(devices: int = 0, fsdp: int = 1) -> Mesh:
    """Returns a mesh of the first `devices` devices, or of all.

    Args:
        devices: how many; 0 takes all.
        fsdp: length of the axis over which large arrays are split; 1 makes no such axis.

    Raises:
        ConfigError: if there are fewer devices, or `fsdp` does not divide them.
    """
    available = jax.devices()
    if devices > len(available):
        raise ConfigError(
            f"config.mesh.devices must be at most {len(available)}, the number of devices "
            f"({available[0].device_kind}) found, got {devices}"
        )
    return mesh_of(available[: devices or len(available)], fsdp)


def mesh_of(devices: Sequence[Any], fsdp: int = 1) -> Mesh:
    """Returns a mesh of just these devices; see `make_mesh`."""
    if len(devices) % fsdp:
        raise ConfigError(
            f"config.mesh.fsdp must be a divisor of the {len(devices)} devices, got {fsdp}"
        )
    axes = {DATA: len(devices) // fsdp, **({FSDP: fsdp} if fsdp > 1 else {})}
    # Those of a process side by side, for it loads consecutive rows. `jax.make_mesh` would order
    # them by their place in a pod: 16 x 16 chips so that no host has two neighbouring pairs. What
    # is reduced over all of them takes the same way whatever their order.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    grid = np.array(ordered, dtype=object).reshape(tuple(axes.values()))
    # Auto, because Explicit axes refuse the reshapes of the attention blocks.
    return Mesh(grid, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def check_batch_size(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Checks that each of the `parts` that a batch is taken in can be split over the mesh.

    Raises:
        ConfigError: if it cannot, with the nearest sizes that can.
    """
    unit = mesh.size * parts
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        sizes = f"{below} or {above}" if below else str(above)
        steps = f" times the {parts} accumulation steps" if parts > 1 else ""
        raise ConfigError(
            f"config.{name} must be divisible by the {mesh.size} devices{steps}, "
            f"got {batch_size}: use {sizes}, or fewer devices (config.mesh.devices)"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole: keys, metrics, small arrays."""
    return NamedSharding(mesh, jax.P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: split by example, over all axes."""
    return NamedSharding(mesh, jax.P(mesh.axis_names))


def state_shardings(tree: Any, mesh: Mesh, smallest_bytes: int) -> Any:
    """Returns the sharding of every array of a tree: of parameters, moments, averages.

    An array of at least `smallest_bytes` is split over the mesh's "fsdp" axis, along the largest
    dimension that the axis divides. All else, and everything on a mesh without that axis, is whole
    on every device. The rule sees shapes and types alone, so that a parameter, its moments and its
    average lie alike.
    """
    return jax.tree.map(lambda x: NamedSharding(mesh, _split(x, mesh, smallest_bytes)), tree)


def _split(x: Any, mesh: Mesh, smallest_bytes: int) -> jax.P:
    axis = mesh.shape.get(FSDP, 1)
    divisible = [index for index, size in enumerate(x.shape) if size and size % axis == 0]
    if axis == 1 or x.size * x.dtype.itemsize < smallest_bytes or not divisible:
        return jax.P()
    longest = max(divisible, key=lambda index: x.shape[index])
    return jax.P(*(FSDP if index == longest else None for index in range(longest + 1)))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes a global batch of the rows that each process has loaded."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def all_processes(rows: np.ndarray) -> np.ndarray:
    """Returns the rows of all processes, in their order; every process has to call it."""
    if jax.process_count() == 1:
        return rows
    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))


def put_state(tree: Any, shardings: Any) -> Any:
    """Puts a tree, which every process has whole, on the devices."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    # `device_put` would have the processes compare every array, one by one.
    return jax.tree.map(
        lambda x, sharding: jax.make_array_from_callback(
            x.shape, sharding, np.asarray(x).__getitem__
        ),
        tree,
        shardings,
    )


def loader_share(mesh: Mesh) -> tuple[int, int]:
    """Returns which share of every batch this process loads: (index, count).

    The rows of a process follow from where its devices stand in the mesh, which need not be the
    order of the processes.

    Raises:
        ConfigError: if the devices of this process are not in the mesh, or not side by side.
    """
    owners = [device.process_index for device in mesh.devices.flat]
    order = list(dict.fromkeys(owners))
    if len(order) != jax.process_count() or owners != sorted(owners, key=order.index):
        raise ConfigError(
            f"the mesh must have all devices of the {jax.process_count()} processes, those of one "
            f"side by side, got those of processes {owners}: leave config.mesh.devices at 0"
        )
    return order.index(jax.process_index()), len(order)


def abstract(tree: Any, shardings: Any) -> Any:
    """Returns shapes, types and shardings of a tree of arrays, without the arrays.

    Args:
        tree: the arrays.
        shardings: one for all of them, or a tree of the same structure.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def peak_tflops(mesh: Mesh) -> float | None:
    """Returns the mesh's peak in TFLOP/s (bfloat16), or None where it is not known."""
    kind = mesh.devices.flat[0].device_kind
    name = max((name for name in _PEAK_TFLOPS if kind.startswith(name)), key=len, default=None)
    return _PEAK_TFLOPS[name] * mesh.size if name else None
