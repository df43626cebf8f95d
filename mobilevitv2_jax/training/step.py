"""One training step: a pure function of state, batch and key."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from mobilevitv2_jax.models.functional import Arrays, arrays, merge
from mobilevitv2_jax.models.pixels import Pixels
from mobilevitv2_jax.training import mixing
from mobilevitv2_jax.training.optimizer import clip_by_norm, hold_frozen, learning_rate_scales
from mobilevitv2_jax.training.schedule import Schedule
from mobilevitv2_jax.training.state import TrainState
from mobilevitv2_jax.training.task import find_task

Metrics = dict[str, Array]
Loss = Callable[[Arrays, Arrays, dict[str, Array], Array], tuple[Array, Arrays]]
Differentiate = Callable[
    [Arrays, Arrays, dict[str, Array], Array], tuple[tuple[Array, Arrays], Arrays]
]
TrainStep = Callable[[TrainState, dict[str, Array], Array], tuple[TrainState, Metrics]]


def make_loss(config: ml_collections.ConfigDict, graph: nnx.GraphDef) -> Loss:
    """Returns the loss to be differentiated, as a pure function.

    It takes (parameters, statistics, batch, key) and returns the loss and the new statistics.
    Frozen parameters are constants to it.

    Args:
        config: the experiment.
        graph: the static part of the model, in training mode.
    """
    task_loss, pixels = find_task(config).loss, Pixels.from_config(config)

    def loss_function(
        parameters: Arrays, statistics: Arrays, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Arrays]:
        model = merge(graph, hold_frozen(parameters, config), statistics)
        rngs = nnx.Rngs(dropout=key)
        loss = task_loss(model, mixing.images(batch, pixels), batch, config, rngs)
        return loss, arrays(model)[1]

    return loss_function


def make_train_step(
    config: ml_collections.ConfigDict,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    mesh: Mesh,
) -> TrainStep:
    """Returns the training step, to be jitted with its state donated.

    The step takes (state, batch, key). The batch has "image" [batch, height, width, channels]
    in uint8 and "label"; the key is that of the run and the same at every step. With
    `optimizer.accumulation_steps` the batch is taken in as many parts of consecutive examples:
    gradients and BatchNorm statistics are the means over the parts, each normalised by itself.
    Returned metrics: "loss", "learning_rate", "gradient_norm" and "skipped_in_a_row".

    Args:
        config: the experiment.
        graph: the static part of the model, in training mode.
        optimizer: the direction of descent.
        schedule: the learning rate.
        mesh: the devices that each part of a batch is split over.
    """
    parts = config.optimizer.accumulation_steps
    differentiate = jax.value_and_grad(make_loss(config, graph), has_aux=True)
    gradients_of = differentiate if parts == 1 else _in_parts(differentiate, parts, mesh)

    def train_step(
        state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[TrainState, Metrics]:
        # Invariant: every random draw follows from the key and the step, so that a resumed
        # run needs no other state to draw the same.
        key = jax.random.fold_in(key, state.step)
        if mixing.is_on(config):
            # Before the batch is taken in parts: partners are those of the whole batch.
            key, mixing_key = jax.random.split(key)
            batch = mixing.draw(batch, mixing_key, config)
        (loss, statistics), gradients = gradients_of(state.parameters, state.statistics, batch, key)
        norm = optax.tree.norm(gradients)
        gradients = clip_by_norm(gradients, norm, config.optimizer.gradient_clip)
        direction, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
        learning_rate = schedule(state.step)
        parameters = jax.tree.map(
            lambda parameter, change, scale: (
                parameter - (scale * learning_rate).astype(parameter.dtype) * change
            ),
            state.parameters,
            direction,
            learning_rate_scales(state.parameters, config),
        )
        ema_parameters, ema_statistics = jax.tree.map(
            lambda average, new: average + config.ema.momentum * (new - average),
            (state.ema_parameters, state.ema_statistics),
            (parameters, statistics),
        )
        proposed = dataclasses.replace(
            state,
            parameters=parameters,
            statistics=statistics,
            optimizer=optimizer_state,
            ema_parameters=ema_parameters,
            ema_statistics=ema_statistics,
        )
        # Invariant: a batch with a non-finite result changes nothing but the counters. The loss
        # alone does not show it: an activation such as ReLU may turn NaN into 0.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & _all_finite(statistics)
        # Computed once: XLA:CPU would take the whole chain of "and" into the kernel of every leaf,
        # and three quarters of the program were that.
        finite = jax.lax.optimization_barrier(finite)
        kept = jax.tree.map(lambda new, old: jax.lax.select(finite, new, old), proposed, state)
        skipped = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        metrics = {
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": norm,
            "skipped_in_a_row": skipped,
        }
        return dataclasses.replace(kept, step=state.step + 1, skipped_in_a_row=skipped), metrics

    return train_step


def _in_parts(differentiate: Differentiate, parts: int, mesh: Mesh) -> Differentiate:
    """Returns the means, over parts of consecutive examples, of what `differentiate` returns."""
    # Otherwise whole parts might lie on single devices, and the others wait.
    sharding = NamedSharding(mesh, jax.P(None, mesh.axis_names))

    def split(x: Array) -> Array:
        x = x.reshape(parts, -1, *x.shape[1:])
        return jax.lax.with_sharding_constraint(x, sharding)

    def accumulate(
        parameters: Arrays, statistics: Arrays, batch: dict[str, Array], key: Array
    ) -> tuple[tuple[Array, Arrays], Arrays]:
        def add(total: Any, part: tuple[Array, dict[str, Array]]) -> tuple[Any, None]:
            number, examples = part
            part_key = jax.random.fold_in(key, number)
            result = differentiate(parameters, statistics, examples, part_key)
            return jax.tree.map(jnp.add, total, result), None

        batches = jax.tree.map(split, batch)
        first = jax.tree.map(lambda x: x[0], batches)
        shapes = jax.eval_shape(differentiate, parameters, statistics, first, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), batches))
        return jax.tree.map(lambda x: x / parts, total)

    return accumulate


def _all_finite(tree: Any) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
