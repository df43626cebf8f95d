"""The compiled training step, and what its batches look like."""

from __future__ import annotations

from collections.abc import Iterable

import jax

from mobilevitv2_jax.models.platform import traced_for
from mobilevitv2_jax.training.experiment import Experiment
from mobilevitv2_jax.training.mesh import batch_sharding, replicated
from mobilevitv2_jax.training.schedule import Schedule
from mobilevitv2_jax.training.step import make_train_step


def abstract_batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes, types and shardings of a training batch, over all devices."""
    size, side = experiment.config.data.batch_size, experiment.config.data.image_size
    task, sharding = experiment.task, batch_sharding(experiment.mesh)
    label_shape = (size, side, side) if task.label_is_map else (size,)
    return {
        "image": jax.ShapeDtypeStruct((size, side, side, 3), "uint8", sharding=sharding),
        "label": jax.ShapeDtypeStruct(label_shape, task.label_type, sharding=sharding),
    }


# XLA:CPU takes barriers out before it decides what to compute once more for each user: chains of
# products and sums, such as a depthwise convolution, are then computed several times.
_CPU_OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def compiler_options(devices: Iterable[jax.Device]) -> dict[str, str] | None:
    """Returns what `jax.jit` is to tell the compiler of these devices, if anything."""
    on_cpu = all(device.platform == "cpu" for device in devices)
    return _CPU_OPTIONS if on_cpu else None


def lower_train_step(experiment: Experiment, schedule: Schedule) -> jax.stages.Lowered:
    """Traces the training step for the devices of the experiment, to be compiled."""
    everywhere = replicated(experiment.mesh)
    # Invariant: one program for any number of devices; the state is donated, so that a step
    # needs no second copy of it.
    graph, optimizer, mesh = experiment.graphs.train, experiment.optimizer, experiment.mesh
    step = jax.jit(
        make_train_step(experiment.config, graph, optimizer, schedule, mesh),
        donate_argnums=0,
        out_shardings=(experiment.state_shardings, everywhere),
        compiler_options=compiler_options(mesh.devices.flat),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)
    with traced_for(mesh.devices.flat[0].platform):
        return step.lower(experiment.abstract_state, abstract_batch(experiment), key)
