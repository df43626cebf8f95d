"""The compiled training step, and what its batches look like."""

from __future__ import annotations

import jax

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
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)
    return step.lower(experiment.abstract_state, abstract_batch(experiment), key)
