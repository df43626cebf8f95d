"""What a training step needs of a device's memory: estimated before it is compiled."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from mobilevitv2_jax.models import summary
from mobilevitv2_jax.models.functional import Arrays
from mobilevitv2_jax.training.experiment import Experiment
from mobilevitv2_jax.training.program import abstract_batch
from mobilevitv2_jax.training.step import make_loss


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
        parameters: with the statistics of BatchNorm.
        gradients: as large as the parameters, and split like them; twice, if accumulated.
        optimizer: the moments.
        average: of parameters and statistics.
        batch: images and labels.
        activations: at least and at most; see `estimate`.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int
    batch: int
    activations: tuple[int, int]

    @property
    def total(self) -> tuple[int, int]:
        """At least and at most."""
        least, most = self.activations
        fixed = self.parameters + self.gradients + self.optimizer + self.average + self.batch
        return fixed + least, fixed + most


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes that one device holds of a tree of arrays, abstract or not."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def estimate(experiment: Experiment) -> Memory:
    """Estimates the memory of a training step without compiling it.

    State and batch are exact. Of the activations, at least the outputs of convolutions and matrix
    products are kept for the gradient, each once in `model.dtype`; at most everything that
    differentiation asks for, of which compilers keep less by computing once more what is cheap.
    With `model.rematerialize` differentiation asks for less from the start, and both are that.
    """
    config, state = experiment.config, experiment.abstract_state
    table = summary.summarize(experiment.abstract_model, config.data.image_size)
    size = jnp.dtype(config.model.dtype).itemsize
    # Accumulation takes one part of the batch after the other.
    parts = config.optimizer.accumulation_steps
    images = config.data.batch_size / parts / experiment.mesh.size
    most = _residuals(experiment) * images / config.data.batch_size
    least = min(table.activations * size * images, most)
    parameters = bytes_per_device(state.parameters)
    return Memory(
        parameters=parameters + bytes_per_device(state.statistics),
        gradients=parameters * (1 if parts == 1 else 2),  # of a part, and their sum
        optimizer=bytes_per_device(state.optimizer),
        average=bytes_per_device((state.ema_parameters, state.ema_statistics)),
        batch=bytes_per_device(abstract_batch(experiment)),
        activations=(round(least), round(most)),
    )


def program_bytes(analysis: Any) -> tuple[int, int]:
    """Returns what a compiled program needs on each device, from its `memory_analysis()`.

    Returns:
        Bytes of arguments and of results that do not take their place; bytes of temporaries.
    """
    own = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + own, analysis.temp_size_in_bytes


def _residuals(experiment: Experiment) -> int:
    """Returns the bytes that differentiation keeps for the gradient, of the whole batch."""
    state = experiment.abstract_state
    loss_function = make_loss(experiment.config, experiment.graphs.train)

    def keep(parameters: Arrays, statistics: Arrays, batch: dict[str, jax.Array]) -> Any:
        def loss(parameters: Arrays) -> tuple[jax.Array, Arrays]:
            return loss_function(parameters, statistics, batch, jax.random.key(0))

        # The function that vjp returns is a pytree: of what it has kept.
        return jax.vjp(loss, parameters, has_aux=True)[1]

    kept = jax.eval_shape(keep, state.parameters, state.statistics, abstract_batch(experiment))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))


def format_bytes(count: float) -> str:
    """Returns a size such as "512 kB" or "1.34 GB", in powers of 1000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"
