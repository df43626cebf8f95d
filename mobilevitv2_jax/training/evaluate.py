"""Evaluation of a run that is finished, stopped or still going."""

from __future__ import annotations

import sys

import jax
import ml_collections
from etils import epath

from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.training import logging, processes, report, run_directory
from mobilevitv2_jax.training.experiment import prepare
from mobilevitv2_jax.training.faults import Watchdog
from mobilevitv2_jax.training.initialization import pretrained_model, resolve
from mobilevitv2_jax.training.mesh import put_state
from mobilevitv2_jax.training.protocol import Options, evaluate_by_protocol
from mobilevitv2_jax.weights.checkpoint import Checkpoints


def evaluate_run(
    config: ml_collections.ConfigDict,
    directory: epath.PathLike,
    *,
    step: int | None = None,
    best: bool = False,
    protocol: Options | None = None,
) -> int:
    """Evaluates a checkpoint on the held-out set, prints the results and adds them to eval.json.

    Args:
        config: the config of the run.
        directory: the run directory.
        step: which checkpoint; the latest by default.
        best: take the best one instead.
        protocol: how a segmentation is judged; None evaluates as the training does.

    Returns:
        The exit status, 0.

    Raises:
        ConfigError: if there is no such checkpoint.
    """
    logging.say(report.identity())
    saved = epath.Path(directory) / "checkpoints"
    nothing = f"{directory} has no checkpoint yet: let the training run until it saves"
    if not saved.exists():
        raise ConfigError(nothing)
    metric = config.checkpoint.best_metric
    with Checkpoints(saved, best_metric=metric, read_only=True, tell=_warn) as checkpoints:
        if not checkpoints.steps():
            raise ConfigError(nothing)
        step = step if step is not None else _choose(checkpoints, best)
        if step is None:
            raise ConfigError(
                f"no checkpoint of {directory} has been evaluated by its training yet: leave out "
                "--best, or name one by --step"
            )
        if step not in checkpoints.steps():
            kept = ", ".join(map(str, checkpoints.steps()))
            raise ConfigError(f"{directory} keeps no checkpoint of step {step}; it has {kept}")
        processes.check_same("the step to evaluate", step)
        experiment = prepare(config)
        state, _ = checkpoints.restore(step, experiment.abstract_state)
    logging.say(str(experiment.workers))
    with Watchdog(config.faults.step_timeout) as watchdog:
        if protocol is None:
            metrics = experiment.evaluate(state, watchdog.watch)
        else:
            weights = experiment.weights(state)
            metrics = evaluate_by_protocol(experiment, weights, protocol, watchdog.watch)
    if jax.process_index() == 0:
        run_directory.write_results(directory, step, metrics)
        logging.say(report.results_table(step, metrics))
        if protocol is not None:
            logging.say(report.class_table(metrics))
    return 0


def evaluate_pretrained(config: ml_collections.ConfigDict, protocol: Options | None = None) -> int:
    """Evaluates the weights of `config.init.pretrained` under their rules.

    It writes nothing but the pictures that `protocol` asks for.

    Args:
        config: a validated experiment, which says the data.
        protocol: how a segmentation is judged; None evaluates as the training does.

    Returns:
        The exit status, 0.

    Raises:
        ConfigError: if the weights cannot be read, or have another number of classes.
    """
    logging.say(report.identity())
    say = logging.say if jax.process_index() == 0 else _say_nothing
    config = resolve(config, say=say, to_be_trained=False)
    experiment = prepare(config)
    model = pretrained_model(config, experiment.model, say, to_be_trained=False)
    state = put_state(experiment.new_state(model), experiment.state_shardings)
    with Watchdog(config.faults.step_timeout) as watchdog:
        loaded = state.parameters, state.statistics
        if protocol is None:
            weights = {"eval" + experiment.task.suffix: loaded}
            metrics = experiment.evaluate_weights(weights, watchdog.watch)
        else:
            metrics = evaluate_by_protocol(experiment, {"eval": loaded}, protocol, watchdog.watch)
    say(report.weights_table(metrics))
    if protocol is not None:
        say(report.class_table(metrics))
    return 0


def _say_nothing(_: str) -> None:
    pass


def _warn(line: str) -> None:
    sys.stderr.write(line + "\n")


def _choose(checkpoints: Checkpoints, best: bool) -> int | None:
    return checkpoints.best_step() if best else checkpoints.latest_step()
