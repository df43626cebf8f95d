"""The training state: a plain pytree of arrays, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from mobilevitv2_jax.models.functional import Arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
        step: steps taken, the skipped ones included.
        parameters: the model's parameters by path.
        statistics: the running statistics of BatchNorm by path.
        optimizer: the state of the optax transformation.
        ema_parameters: exponential moving average of the parameters.
        ema_statistics: the same of the statistics; an average without them is another method.
        skipped_in_a_row: steps skipped since the last that was not.
    """

    step: Int[Array, ""]
    parameters: Arrays
    statistics: Arrays
    optimizer: Any
    ema_parameters: Arrays
    ema_statistics: Arrays
    skipped_in_a_row: Int[Array, ""]

    @classmethod
    def create(
        cls, parameters: Arrays, statistics: Arrays, optimizer: optax.GradientTransformation
    ) -> TrainState:
        """Returns the state before the first step; the average starts as a copy."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            parameters=parameters,
            statistics=statistics,
            optimizer=optimizer.init(parameters),
            ema_parameters=jax.tree.map(jnp.copy, parameters),
            ema_statistics=jax.tree.map(jnp.copy, statistics),
            skipped_in_a_row=jnp.zeros((), jnp.int32),
        )
