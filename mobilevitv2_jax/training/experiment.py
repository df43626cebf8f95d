"""What training and evaluation of a run have in common, made from its config alone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from flax import nnx

from mobilevitv2_jax.config import model_config
from mobilevitv2_jax.data.augment import evaluation_transform
from mobilevitv2_jax.data.loader import evaluation_batches
from mobilevitv2_jax.data.sources import Source, load_source
from mobilevitv2_jax.evaluation.classification import Weights, evaluate
from mobilevitv2_jax.evaluation.step import EvaluationStep, make_evaluation_step
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.functional import Graphs, split
from mobilevitv2_jax.models.tasks import MobileViTV2ForImageClassification
from mobilevitv2_jax.training.mesh import (
    abstract,
    check_batch_size,
    make_mesh,
    put_batch,
    replicated,
)
from mobilevitv2_jax.training.optimizer import make_optimizer
from mobilevitv2_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment on its devices.

    Attributes:
        config: the resolved experiment.
        mesh: the devices.
        eval_source: the held-out set.
        model: the model's configuration, with the classes of the data.
        graphs: the model's static part.
        initial_state: makes the state before the first step; traced, not run, on resume.
    """

    config: ml_collections.ConfigDict
    mesh: jax.sharding.Mesh
    eval_source: Source
    model: MobileViTV2Config
    graphs: Graphs
    initial_state: Callable[[], TrainState]

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The state's shapes, types and shardings."""
        return abstract(jax.eval_shape(self.initial_state), replicated(self.mesh))

    @functools.cached_property
    def evaluation_step(self) -> EvaluationStep:
        """The jitted evaluation step: one compilation serves every evaluation of a process."""
        return jax.jit(
            make_evaluation_step(self.graphs.evaluation), out_shardings=replicated(self.mesh)
        )

    def put(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """Puts a host batch on the mesh."""
        return put_batch(batch, self.mesh)

    def eval_batches(self) -> contextlib.AbstractContextManager:
        """Returns the held-out set in batches, every example once."""
        return evaluation_batches(
            self.eval_source,
            evaluation_transform(self.config),
            batch_size=self.config.eval.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.config.data.workers,
            threads=self.config.data.threads,
        )

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Returns the metrics of a state, raw ("eval/…") and averaged ("eval_ema/…")."""
        weights: Weights = {
            "eval": (state.parameters, state.statistics),
            "eval_ema": (state.ema_parameters, state.ema_statistics),
        }
        with self.eval_batches() as batches:
            metrics, corrupt = evaluate(self.evaluation_step, weights, batches, self.put)
        return {**metrics, "eval/corrupt": float(corrupt)} if corrupt else metrics


def prepare(config: ml_collections.ConfigDict) -> Experiment:
    """Finds devices and data, and lays out the model without computing anything.

    Raises:
        ConfigError: if batches do not fit the devices, or the data cannot be found.
    """
    mesh = make_mesh(config.mesh.devices)
    check_batch_size("data.batch_size", config.data.batch_size, mesh)
    check_batch_size("eval.batch_size", config.eval.batch_size, mesh)
    source = load_source(config.data.source, config.data.eval_split, config.data.directory)
    labels = dict(enumerate(source.class_names))
    model = model_config(config, num_labels=None, id2label=labels)
    optimizer = make_optimizer(config)

    def build() -> MobileViTV2ForImageClassification:
        return MobileViTV2ForImageClassification(model, rngs=nnx.Rngs(config.seed))

    def initial_state() -> TrainState:
        _, parameters, statistics = split(build())
        return TrainState.create(parameters, statistics, optimizer)

    graphs, _, _ = split(nnx.eval_shape(build))
    return Experiment(config, mesh, source, model, graphs, initial_state)
