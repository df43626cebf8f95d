"""The training loop. It reads from top to bottom.

The order of its parts is a promise (evaluate, save, next batch, step), and so is what each of
the comments marked "Invariant" says. Tests hold both.
"""

from __future__ import annotations

import contextlib
import functools
import time
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from mobilevitv2_jax.config import Duration, to_json
from mobilevitv2_jax.data.loader import train_batches
from mobilevitv2_jax.errors import ConfigError, NonFiniteError
from mobilevitv2_jax.evaluation import confusion
from mobilevitv2_jax.evaluation.classification import predict
from mobilevitv2_jax.files import write_whole
from mobilevitv2_jax.models import summary
from mobilevitv2_jax.training import initialization, logging, processes, report, run_directory
from mobilevitv2_jax.training.corrupt import CorruptRecords
from mobilevitv2_jax.training.experiment import open_source, prepare
from mobilevitv2_jax.training.faults import EXIT_STATUS, Stopped, StopRequest, Watchdog
from mobilevitv2_jax.training.mesh import all_processes, peak_tflops, put_state, replicated
from mobilevitv2_jax.training.out_of_memory import OutOfMemory
from mobilevitv2_jax.training.profiling import ProfilerWindow
from mobilevitv2_jax.training.program import lower_train_step
from mobilevitv2_jax.training.schedule import Schedule
from mobilevitv2_jax.training.tracking import load_wandb, start_wandb
from mobilevitv2_jax.weights.checkpoint import Checkpoints


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike, command: str) -> int:
    """Trains, or continues to train, until the end of the schedule.

    Args:
        config: a validated experiment.
        workdir: the run directory; made if need be, continued if it holds this run.
        command: the command line that continues the run, to be shown to the user.

    Returns:
        The exit status: 0 when finished or at `schedule.stop_at`, 75 after SIGTERM, 130 after
        Ctrl-C.

    Raises:
        ConfigError: before anything is compiled, if the run cannot be started as asked.
        DeviceMemoryError: if a device runs out of memory.
        NonFiniteError: if `optimizer.max_skipped` steps in a row were not finite.
    """
    # ---- Devices, data and model ---------------------------------------------------------
    logging.say(report.identity())
    is_first = jax.process_index() == 0
    config = initialization.resolve(config, workdir, logging.say if is_first else None)
    experiment = prepare(config)
    mesh, task = experiment.mesh, experiment.task
    source = open_source(config, config.data.train_split)
    schedule = Schedule.from_config(config, len(source))
    wandb = load_wandb(config)
    processes.check_same("the checksum of their config", zlib.crc32(to_json(config).encode()) >> 1)
    # Written to only now: a config that cannot run must not leave its run directory behind.
    directory = run_directory.open_run(config, workdir) if is_first else epath.Path(workdir)
    processes.check_shared(directory)
    steps = functools.partial(
        Duration.steps, examples=len(source), batch_size=config.data.batch_size
    )
    eval_every = steps(Duration.parse(config.eval.every))
    save_every = steps(Duration.parse(config.checkpoint.every))
    log_every = steps(Duration.parse(config.log.every))
    stop_at = steps(Duration.parse(config.schedule.stop_at or config.schedule.total))
    table = summary.summarize(experiment.abstract_model, config.data.image_size)
    scale = logging.Scale(
        steps=schedule.steps,
        steps_per_epoch=schedule.steps_per_epoch,
        batch_size=config.data.batch_size,
        # A multiplication and an addition each, forward once and backward twice.
        tflop_per_image=3 * 2 * table.macs / 1e12,
        peak_tflops=peak_tflops(mesh),
    )

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(
                directory / "checkpoints",
                keep_latest=config.checkpoint.keep_latest,
                keep_best=config.checkpoint.keep_best,
                best_metric=config.checkpoint.best_metric,
                tell=logging.say,
            )
        )
        start = checkpoints.latest_step() or 0
        processes.check_same("their latest checkpoint", start)
        if start > schedule.steps:
            raise ConfigError(
                f"config.schedule.total is {schedule.steps} steps, but {directory} has been "
                f"trained for {start}: choose a longer schedule, or another --workdir"
            )
        if start >= schedule.steps and run_directory.is_finished(directory, start):
            best = checkpoints.best_step()
            if is_first:
                logging.say(report.finished(directory, config, start, best, command))
            return 0
        logger = logging.Logger(
            directory,
            step=start,
            tensorboard=config.log.tensorboard,
            active=is_first,
            wandb=start_wandb(wandb, config, directory) if wandb and is_first else None,
        )
        stack.callback(logger.close)
        out_of_memory = stack.enter_context(OutOfMemory(experiment))
        logger.say(report.introduction(experiment.model, mesh, source, experiment.eval_source))
        logger.say(str(experiment.workers))
        if is_first:
            experiment.model.save_pretrained(directory / "model")
            initialization.processor(config).save_pretrained(directory / "model")
            text = summary.render(table) + "\n\n" + "\n".join(report.config_lines(config)) + "\n"
            write_whole(directory / "summary.txt", text)

        # Before all that takes long: a signal meanwhile is answered before the first step.
        stop = stack.enter_context(StopRequest(processes.started()))

        # ---- State: new, or that of the last checkpoint ----------------------------------
        metadata: dict[str, Any] = {"clock": {}}
        if start:
            state, metadata = checkpoints.restore(start, experiment.abstract_state)
            run_directory.check_data(metadata["data"], source.fingerprint, config)
            logger.say(f"continuing {directory} at step {start} of {schedule.steps}")
        else:
            state = put_state(experiment.initial_state(logger.say), experiment.state_shardings)
            logger.say(f"starting {directory}: {schedule.steps} steps")

        # ---- Compile ---------------------------------------------------------------------
        key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=replicated(mesh))()
        began = time.perf_counter()
        lowered = lower_train_step(experiment, schedule)
        traced = time.perf_counter()
        compiled_step = out_of_memory.compiled = lowered.compile()
        compiled = time.perf_counter()
        logger.say(
            f"compiled the training step in {compiled - began:.0f} s "
            f"({traced - began:.0f} s tracing, {compiled - traced:.0f} s XLA)"
        )

        # ---- Loop: evaluate, save, next batch, step --------------------------------------
        # Invariant: the order of the data follows from seed and step alone, so that resuming
        # at a step is slicing there.
        batches = stack.enter_context(
            train_batches(
                source,
                task.train_transform(config),
                batch_size=config.data.batch_size,
                seed=config.seed,
                start_step=start,
                process_index=experiment.share[0],
                process_count=experiment.share[1],
                workers=experiment.workers.count,
                threads=config.data.threads,
            )
        )
        watchdog = stack.enter_context(Watchdog(config.faults.step_timeout))
        corrupt = CorruptRecords(source, config.data.max_corrupt, logger.say)
        profiler = ProfilerWindow(config, directory, logger.say, active=is_first)
        stack.callback(profiler.close)
        pending: tuple[int, dict[str, jax.Array], np.ndarray] | None = None
        metrics: dict[str, float] = {}
        clock = logging.Clock(**metadata["clock"])
        # Whether a signal cut the evaluation of this step short: it is made when the run goes on.
        owed = bool(metadata.get("owed")) and not checkpoints.has_metrics(start)

        def log(step: int, values: dict[str, jax.Array], examples: np.ndarray) -> None:
            fetched = {f"train/{name}": float(x) for name, x in jax.device_get(values).items()}
            skipped = int(fetched.pop("train/skipped_in_a_row"))
            if skipped:
                indices = all_processes(examples).tolist()
                logger.say(logging.skipped_line(step, skipped, indices))
                logger.write(
                    step,
                    {"train/skipped_in_a_row": skipped, "train/skipped_examples": indices},
                )
            if skipped >= config.optimizer.max_skipped:
                saved = checkpoints.latest_step()
                last_good = (
                    f"The last good checkpoint is step {saved}"
                    if saved
                    else "No checkpoint was saved"
                )
                raise NonFiniteError(
                    f"{skipped} steps in a row up to step {step} were not finite. {last_good}; "
                    "a lower config.schedule.learning_rate or a longer config.schedule.warmup "
                    "may help"
                )
            if step % log_every == 0 or step == schedule.steps:
                seconds_per_step, data_wait = clock.interval()
                fetched |= logging.rates(scale, seconds_per_step, data_wait)
                logger.say(logging.console_line(step, fetched, scale, seconds_per_step))
                logger.write(step, fetched)

        def watched(batches: Iterable) -> Iterable:
            return stop.pass_on(watchdog.watch(batches))

        for step in range(start, schedule.steps + 1):
            watchdog.feed()
            last, stopping = step == schedule.steps, stop.reached()
            due = (step > start or owed) and (last or step % eval_every == 0)
            saving = step > start and (due or step >= stop_at or step % save_every == 0)
            if pending and (due or saving or stopping):
                log(*pending)
                pending = None
            with clock.paused():
                owed = due or (last and not metrics)
                if owed and not stopping:
                    try:
                        metrics = experiment.evaluate(state, watched)
                    except Stopped:
                        stopping = True
                    else:
                        owed = False
                        if due:  # if not, a run that died before its results has written them
                            logger.write(step, metrics)
                            if step == start:  # saved when its evaluation was cut short
                                checkpoints.add_metrics(step, metrics)
                        logger.say(report.evaluation_line(step, metrics))
                    watchdog.feed()
                stopping = stopping or (step >= stop_at and not last)
                if saving or (stopping and step > start):
                    if records := corrupt.settle():
                        logger.write(step, {"train/corrupt": records})
                    metadata = {
                        "clock": clock.to_dict(),
                        "data": source.fingerprint,
                        "owed": owed,
                    }
                    found = metrics if due and not owed else None
                    checkpoints.save(step, state, metadata, found)
                    logger.publish()
                profiler.turn(None if last or stopping else step + 1, state)
            if last or stopping:
                break
            with clock.waiting_for_data():
                batch = next(batches)
            corrupt.add(batch)
            arrays = experiment.put({name: batch[name] for name in ("image", "label")})
            with jax.transfer_guard("disallow"):
                state, values = compiled_step(state, arrays, key)
            # Invariant: the metrics of a step are fetched while the next one runs.
            if pending:
                log(*pending)
            pending = (step + 1, values, batch["index"])
            clock.tick()

        if stopping and (owed or not last):
            checkpoints.close()
            logger.say(report.stopped(step, schedule.steps, command, stop.signal))
            return EXIT_STATUS[stop.signal] if stop.signal else 0

        # ---- Results ---------------------------------------------------------------------
        with experiment.eval_batches() as eval_batches:
            predictions = predict(
                experiment.evaluation_step,
                state.ema_parameters,
                state.ema_statistics,
                watchdog.watch(eval_batches),
                experiment.put,
                limit=config.eval.pictures_from,
            )
        counts = experiment.confusion(state, watchdog.watch)
        if is_first:
            value = metrics[f"eval_ema{task.suffix}/{task.main_metric}"]
            name = report.NAMES[task.main_metric] + report.SUFFIXES[task.suffix]
            title = f"{source.name}, held out: {name} {value:.2%} (EMA)"
            path = directory / "predictions.png"
            task.save_picture(path, predictions, source.class_names, title)
            if counts is not None:
                confusion.save(directory, counts, source.class_names, title)
            run_directory.write_results(directory, schedule.steps, metrics)
            run_directory.mark_finished(directory, schedule.steps)
        checkpoints.close()
        best = checkpoints.best_step()
        logger.say(report.finished(directory, config, schedule.steps, best, command))
    return 0
