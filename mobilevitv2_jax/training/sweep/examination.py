"""What a sweep has to ask JAX: whether its points can run here, and what its models cost.

It is asked through `in_own_process`: a process that has asked for a device holds it, and on some
machines nobody else can use it then.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np
from etils import epath

from mobilevitv2_jax.config import flatten, from_json
from mobilevitv2_jax.errors import ConfigError, UserError
from mobilevitv2_jax.models import summary
from mobilevitv2_jax.models.functional import merge
from mobilevitv2_jax.training import initialization, run_directory
from mobilevitv2_jax.training.experiment import Experiment, open_source, prepare
from mobilevitv2_jax.training.mesh import make_mesh, mesh_of
from mobilevitv2_jax.training.schedule import Schedule
from mobilevitv2_jax.training.sweep.devices import Host, devices_per_point

Result = TypeVar("Result")

_WARM_UP, _TIMED = 3, 50  # forward passes

# Groups and keys that `prepare` does not look at: points that differ in these alone are laid out
# once for all of them.
_NOT_LAID_OUT = ("seed", "schedule", "augment", "ema", "checkpoint", "log", "profile", "faults")


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function in a process that ends with it.

    Raises:
        UserError: that of the function, or if its process has died.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    # Not a pool of one: Ctrl-C would wait for what is being computed.
    try:
        process.start()
        sender.close()
        result, error = receiver.recv()
    except EOFError:
        raise UserError(
            "the process that looks at the devices has died; what it said stands above"
        ) from None
    except BaseException:
        if process.pid:
            process.kill()
        raise
    finally:
        if process.pid:
            process.join()
    if error is not None:
        raise error
    return result


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    try:
        sender.send((function(*arguments), None))
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()  # which is lost on the way
        sender.send((None, error))


def examine(
    points: Mapping[str, tuple[str, str]], parallel: int | None
) -> tuple[Host, dict[str, int]]:
    """Lays out the experiment of every point, as its own process will.

    Args:
        points: the text of `config.json`, and the run directory, by the name of the point.
        parallel: how many points run here at a time; None if they run elsewhere, on devices that
            are not known here.

    Returns:
        This machine, and the number of steps of each point.

    Raises:
        ConfigError: for the first point that cannot run, or whose run directory belongs to another
            config; or if there are too few devices.
    """
    if parallel is None:
        jax.config.update("jax_platforms", "cpu")
    found = jax.local_devices()
    host = Host(found[0].platform, found[0].device_kind, len(found))
    each = devices_per_point(host, parallel or 1)
    laid_out: set[str] = set()
    steps = {}
    for name, (text, directory) in points.items():
        config = from_json(text, f"point {name}")
        distinct = _distinct(config)
        try:
            steps[name] = Schedule.from_config(config, _examples(config)).steps
            if (epath.Path(directory) / "config.json").exists():
                # Resolved with its rules by the run that is there, and not by reading weights.
                resolved = initialization.resolve(config, directory)
                run_directory.check_same(
                    run_directory.read_config(directory), resolved, epath.Path(directory)
                )
            if distinct not in laid_out:
                elsewhere = parallel is None
                mesh = mesh_of(found[:1]) if elsewhere else _mesh(config, each)
                prepare(initialization.resolve(config), mesh)
            laid_out.add(distinct)
        except UserError as error:
            raise ConfigError(f"point {name} of the sweep: {error}") from None
    return host, steps


def _distinct(config: ml_collections.ConfigDict) -> str:
    values = flatten(config)
    kept = {key: x for key, x in values.items() if key.split(".")[0] not in _NOT_LAID_OUT}
    return json.dumps(kept, sort_keys=True)


def _examples(config: ml_collections.ConfigDict) -> int:
    return len(open_source(config, config.data.train_split))


def _mesh(config: ml_collections.ConfigDict, available: int) -> jax.sharding.Mesh:
    wanted = config.mesh.devices
    if wanted > available:
        raise ConfigError(
            f"config.mesh.devices must be at most {available}, the devices that a point has to "
            f"itself, got {wanted}: run fewer at a time (--parallel)"
        )
    return make_mesh(wanted or available, config.mesh.fsdp)


def measure(configs: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Counts and measures what each of some models costs for one image, in evaluation mode.

    Args:
        configs: the text of a `config.json` by any name.

    Returns:
        By name, "parameters", "macs", "latency" (milliseconds of one forward pass of one image,
        the median of 50, on one device, compiled, weights in place) and "device".
    """
    return {name: _measure(from_json(text, name)) for name, text in configs.items()}


def _measure(config: ml_collections.ConfigDict) -> dict[str, Any]:
    device = jax.local_devices()[0]
    experiment = prepare(_for_one_image(config), mesh_of([device]))
    size = config.eval.crop
    table = summary.summarize(experiment.abstract_model, size)
    return {
        "parameters": table.parameters,
        "macs": table.macs,
        "latency": 1000 * _seconds(experiment, size),
        "device": device.device_kind,
    }


def _for_one_image(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the config without what only its training needs of the devices."""
    alone = config.copy_and_resolve_references()
    alone.mesh.fsdp = 1
    return alone.lock()


def _seconds(experiment: Experiment, size: int) -> float:
    """Returns the median time of a forward pass; the values of weights do not change it."""
    graph, abstract = experiment.graphs.evaluation, experiment.abstract_state
    weights = jax.tree.map(
        lambda x: jax.device_put(np.ones(x.shape, x.dtype), x.sharding),
        (abstract.ema_parameters, abstract.ema_statistics),
    )
    image = jax.device_put(np.zeros((1, size, size, 3), np.float32))
    forward = jax.jit(lambda weights, image: merge(graph, *weights)(image).logits)
    times = []
    for _ in range(_WARM_UP + _TIMED):
        began = time.perf_counter()
        forward(weights, image).block_until_ready()
        times.append(time.perf_counter() - began)
    return statistics.median(times[_WARM_UP:])
