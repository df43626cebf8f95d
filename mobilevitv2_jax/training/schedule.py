"""The learning rate, as a function of the number of steps taken."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int

from mobilevitv2_jax.config import Duration


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine that began with the run.

    The cosine spans all steps and the warm-up is not subtracted from it, so that the rate
    falls to the cosine's value when the warm-up ends. Source: ml-cvnets
    `optim/scheduler/cosine.py`, which evaluates it once per epoch (`per_epoch`).

    Attributes:
        steps: length of the run.
        steps_per_epoch: ceil(examples / batch size).
        warmup_steps: length of the warm-up.
        warmup_value: rate at step 0, if there is a warm-up.
        peak: rate that the warm-up leads to, and the cosine starts from.
        end: rate that the cosine leads to.
        per_epoch: hold the cosine constant within each epoch.
    """

    steps: int
    steps_per_epoch: int
    warmup_steps: int
    warmup_value: float
    peak: float
    end: float
    per_epoch: bool

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, examples: int) -> Schedule:
        """Reads `config.schedule`, for a training set of so many examples."""
        batch, group = config.data.batch_size, config.schedule
        return cls(
            steps=Duration.parse(group.total).steps(examples, batch),
            steps_per_epoch=math.ceil(examples / batch),
            warmup_steps=Duration.parse(group.warmup).steps(examples, batch),
            warmup_value=group.warmup_learning_rate,
            peak=group.learning_rate,
            end=group.min_learning_rate,
            per_epoch=group.per_epoch,
        )

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Returns the learning rate of the step that follows `step` finished ones."""
        position = jnp.asarray(step, jnp.float32)
        warmup = self.warmup_value + position * (
            (self.peak - self.warmup_value) / max(self.warmup_steps, 1)
        )
        if self.per_epoch:
            epochs = math.ceil(self.steps / self.steps_per_epoch)
            # In integers: XLA makes of a division by a constant a product, a little too small.
            progress = (jnp.asarray(step, jnp.int32) // self.steps_per_epoch) / epochs
        else:
            progress = position / self.steps
        cosine = self.end + 0.5 * (self.peak - self.end) * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(position < self.warmup_steps, warmup, cosine)
