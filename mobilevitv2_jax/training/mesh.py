"""Devices and how arrays lie on them.

The same program runs on one device and on many: the batch is split over the mesh, everything
else is on every device, and the compiler places the collectives.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from mobilevitv2_jax.errors import ConfigError

DATA = "data"
"""Name of the mesh axis over which batches are split."""

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


def make_mesh(devices: int = 0) -> Mesh:
    """Returns a mesh of the first `devices` devices, or of all.

    Raises:
        ConfigError: if there are fewer devices.
    """
    available = jax.devices()
    if devices > len(available):
        raise ConfigError(
            f"config.mesh.devices must be at most {len(available)}, the number of devices "
            f"({available[0].device_kind}) found, got {devices}"
        )
    chosen = available[: devices or len(available)]
    # Auto, because Explicit axes (the default) refuse the reshapes of the attention blocks.
    return jax.make_mesh((len(chosen),), (DATA,), axis_types=(AxisType.Auto,), devices=chosen)


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
    """Checks that a batch can be split over the mesh.

    Raises:
        ConfigError: if it cannot, with the nearest sizes that can.
    """
    if batch_size % mesh.size:
        below, above = batch_size // mesh.size * mesh.size, -(-batch_size // mesh.size) * mesh.size
        sizes = f"{below} or {above}" if below else str(above)
        raise ConfigError(
            f"config.{name} must be divisible by the {mesh.size} devices, got {batch_size}: "
            f"use {sizes}, or fewer devices (config.mesh.devices)"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole: state, keys, metrics."""
    return NamedSharding(mesh, jax.P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: split by example."""
    return NamedSharding(mesh, jax.P(DATA))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes a global batch of the rows that each process has loaded."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Puts a tree, which every process has whole, on every device."""
    sharding = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # `device_put` would have the processes compare every array, one by one.
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__), tree
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


def abstract(tree: Any, sharding: NamedSharding) -> Any:
    """Returns shapes, types and sharding of a tree of arrays, without the arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def peak_tflops(mesh: Mesh) -> float | None:
    """Returns the mesh's peak in TFLOP/s (bfloat16), or None where it is not known."""
    kind = mesh.devices.flat[0].device_kind
    name = max((name for name in _PEAK_TFLOPS if kind.startswith(name)), key=len, default=None)
    return _PEAK_TFLOPS[name] * mesh.size if name else None
