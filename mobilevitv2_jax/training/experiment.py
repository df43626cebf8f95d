"""What training and evaluation of a run have in common, made from its config alone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import socket
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from flax import nnx

from mobilevitv2_jax.config import model_config
from mobilevitv2_jax.data import workers
from mobilevitv2_jax.data.loader import evaluation_batches
from mobilevitv2_jax.data.sources import Source, load_source
from mobilevitv2_jax.data.workers import Workers
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.evaluation import confusion
from mobilevitv2_jax.evaluation.classification import Weights, evaluate
from mobilevitv2_jax.evaluation.step import EvaluationStep
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.functional import Graphs, split
from mobilevitv2_jax.models.pixels import Pixels
from mobilevitv2_jax.training import logging
from mobilevitv2_jax.training.initialization import pretrained_model
from mobilevitv2_jax.training.mesh import (
    abstract,
    all_processes,
    check_batch_size,
    loader_share,
    make_mesh,
    put_batch,
    replicated,
    state_shardings,
)
from mobilevitv2_jax.training.optimizer import make_optimizer
from mobilevitv2_jax.training.state import TrainState
from mobilevitv2_jax.training.task import Task, find_task


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment on its devices.

    Attributes:
        config: the resolved experiment.
        task: what is particular to classification or segmentation.
        mesh: the devices.
        share: which share of every batch this process loads: (index, count).
        workers: loader processes of this process.
        eval_source: the held-out set.
        model: the model's configuration, with the classes of the data.
        abstract_model: the model without its weights.
        graphs: the model's static part.
        optimizer: the direction of descent.
        new_model: makes the model with new weights.
        new_state: makes the state before the first step of a model.
    """

    config: ml_collections.ConfigDict
    task: Task
    mesh: jax.sharding.Mesh
    share: tuple[int, int]
    workers: Workers
    eval_source: Source
    model: MobileViTV2Config
    abstract_model: nnx.Module
    graphs: Graphs
    optimizer: optax.GradientTransformation
    new_model: Callable[[], nnx.Module]
    new_state: Callable[[nnx.Module], TrainState]

    def initial_state(self, say: Callable[[str], None] = logging.say) -> TrainState:
        """Returns the state before the first step, of new weights or of `config.init`'s."""
        if not self.config.init.pretrained:
            return self.new_state(self.new_model())
        return self.new_state(pretrained_model(self.config, self.model, say))

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The state's shapes, types and shardings."""
        state = jax.eval_shape(lambda: self.new_state(self.new_model()))
        smallest = self.config.mesh.fsdp_smallest_bytes
        return abstract(state, state_shardings(state, self.mesh, smallest))

    @property
    def state_shardings(self) -> TrainState:
        """The sharding of every array of the state: new, after a step, and restored."""
        return jax.tree.map(lambda x: x.sharding, self.abstract_state)

    @functools.cached_property
    def evaluation_step(self) -> EvaluationStep:
        """The jitted evaluation step: one compilation serves every evaluation of a process."""
        pixels = Pixels.from_config(self.config)
        step = self.task.make_evaluation_step(self.graphs.evaluation, self.model, pixels)
        return jax.jit(step, out_shardings=replicated(self.mesh))

    def put(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """Puts a host batch on the mesh."""
        return put_batch(batch, self.mesh)

    def eval_batches(self) -> contextlib.AbstractContextManager:
        """Returns the held-out set in batches, every example once."""
        return evaluation_batches(
            self.eval_source,
            self.task.evaluation_transform(self.config),
            batch_size=self.config.eval.batch_size,
            process_index=self.share[0],
            process_count=self.share[1],
            workers=self.workers.count,
            threads=self.config.data.threads,
        )

    @staticmethod
    def weights(state: TrainState, suffix: str = "") -> Weights:
        """Returns the weights of a state and their average, by the prefix of their metrics."""
        return {
            "eval" + suffix: (state.parameters, state.statistics),
            "eval_ema" + suffix: (state.ema_parameters, state.ema_statistics),
        }

    def evaluate(
        self, state: TrainState, over: Callable[[Iterable], Iterable] = iter
    ) -> dict[str, float]:
        """Returns the metrics of a state, raw ("eval/…") and averaged ("eval_ema/…").

        A segmentation's are "eval_squashed/…" and "eval_ema_squashed/…". The batches are taken
        through `over`, which may watch them go by.
        """
        return self.evaluate_weights(self.weights(state, self.task.suffix), over)

    def evaluate_weights(
        self, weights: Weights, over: Callable[[Iterable], Iterable] = iter
    ) -> dict[str, float]:
        """Returns the metrics of weights by their prefix; see `evaluate`."""
        with self.eval_batches() as batches:
            metrics, corrupt = evaluate(self.evaluation_step, weights, over(batches), self.put)
        return {**metrics, "eval/corrupt": float(corrupt)} if corrupt else metrics

    def confusion(
        self, state: TrainState, over: Callable[[Iterable], Iterable] = iter
    ) -> np.ndarray | None:
        """Returns counts [true class, predicted class] of the held-out set by averaged weights.

        It is None for a segmentation, and for more classes than can be looked at.
        """
        classes = len(self.eval_source.class_names)
        if self.task.label_is_map or classes > confusion.LARGEST:
            return None
        weights = state.ema_parameters, state.ema_statistics
        with self.eval_batches() as batches:
            return confusion.count(self.evaluation_step, *weights, over(batches), self.put, classes)


def prepare(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh | None = None) -> Experiment:
    """Finds devices and data, and lays out the model without computing anything.

    Args:
        config: a validated experiment.
        mesh: the devices, in the place of those that `config.mesh` finds here. They may be those
            of a pod that is elsewhere: nothing can be loaded for them, and no other process is
            asked.

    Raises:
        ConfigError: if batches do not fit the devices, or the data cannot be found.
    """
    is_elsewhere = mesh is not None
    mesh = mesh or make_mesh(config.mesh.devices, config.mesh.fsdp)
    parts = config.optimizer.accumulation_steps
    check_batch_size("data.batch_size", config.data.batch_size, mesh, parts)
    check_batch_size("eval.batch_size", config.eval.batch_size, mesh)
    share = (0, 1) if is_elsewhere else loader_share(mesh)
    task = find_task(config)
    source = open_source(config, config.data.eval_split)
    labels = dict(enumerate(source.class_names))
    model = model_config(config, num_labels=None, id2label=labels)
    optimizer = make_optimizer(config)

    def build() -> nnx.Module:
        return task.model(model, rngs=nnx.Rngs(config.seed))

    def new_state(model: nnx.Module) -> TrainState:
        _, parameters, statistics = split(model)
        return TrainState.create(parameters, statistics, optimizer)

    abstract_model = nnx.eval_shape(build)
    graphs, _, _ = split(
        abstract_model, frozen="backbone" if config.optimizer.freeze_backbone else ""
    )
    return Experiment(
        config,
        task,
        mesh,
        share,
        Workers(0, "elsewhere") if is_elsewhere else _workers(config, share[1]),
        source,
        model,
        abstract_model,
        graphs,
        optimizer,
        build,
        new_state,
    )


def _workers(config: ml_collections.ConfigDict, processes: int) -> Workers:
    """Returns the loader processes of this process; every process has to call it."""
    pixels = max(
        config.data.batch_size * config.data.image_size**2,
        config.eval.batch_size * config.eval.crop**2,
    )
    channels = 3 + find_task(config).label_is_map
    batch_bytes = pixels * channels // processes
    name = zlib.crc32(socket.gethostname().encode()) >> 1  # as much as int32 holds
    hosts = all_processes(np.array([name], np.int32))
    sharers = int((hosts == hosts[jax.process_index()]).sum())
    return workers.choose(config.data.workers, batch_bytes=batch_bytes, sharers=sharers)


def open_source(config: ml_collections.ConfigDict, split: str) -> Source:
    """Opens a split of the experiment's data set.

    Raises:
        ConfigError: if there is no such data set or split.
    """
    order: dict[str, Any] = {}
    if config.data.source == "synthetic":  # it has no classes of its own
        label_is_map = find_task(config).label_is_map
        order = {"num_labels": config.model.num_labels, "label_is_map": label_is_map}
    try:
        return load_source(config.data.source, split, config.data.directory, **order)
    except ValueError as error:
        raise ConfigError(f"config.data: {error}") from None
