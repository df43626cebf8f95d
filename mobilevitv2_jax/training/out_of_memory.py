"""A device that ran out of memory: what the program needs, and what would need less."""

from __future__ import annotations

import jax

from mobilevitv2_jax.errors import DeviceMemoryError
from mobilevitv2_jax.training.experiment import Experiment, prepare
from mobilevitv2_jax.training.memory import Memory, estimate, format_bytes, program_bytes


class OutOfMemory:
    """While entered, a device's running out of memory becomes an error that says what helps.

    Args:
        experiment: what is trained.
        limit: bytes of one device; by default what the device tells.

    Attributes:
        compiled: the training step, once there is one: its needs take the place of the estimate.
    """

    compiled: jax.stages.Compiled | None = None

    def __init__(self, experiment: Experiment, limit: int | None = None) -> None:
        self._experiment = experiment
        self._limit = limit

    def __enter__(self) -> OutOfMemory:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # A full disk is RESOURCE_EXHAUSTED, too, but no JaxRuntimeError.
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            raise DeviceMemoryError(self._explain(str(error))) from error

    def _explain(self, message: str) -> str:
        experiment, config = self._experiment, self._experiment.config
        device = experiment.mesh.devices.flat[0]
        # A CPU and a device that is not there (a topology) tell nothing.
        limit = self._limit or (device.memory_stats() or {}).get("bytes_limit")
        found = estimate(experiment)
        total, passing = self._needs(found)
        source = "as compiled" if self.compiled else "at least, by estimate"
        options = _advice(experiment, found, total - passing, passing, limit)
        reason = message.split("RESOURCE_EXHAUSTED:")[-1].strip().split("\n")[0].rstrip(".")
        return (
            f"out of memory on a device ({device.device_kind}"
            + (f" with {format_bytes(limit)}" if limit else "")
            + f"): {reason}. A training step with config.data.batch_size={config.data.batch_size}, "
            f"config.optimizer.accumulation_steps={config.optimizer.accumulation_steps} and "
            f"config.model.rematerialize={config.model.rematerialize} needs {format_bytes(total)} "
            f"on each of {experiment.mesh.size} devices {source}, {format_bytes(passing)} of it "
            f"only while it runs. {'Instead, ' + '; or '.join(options) + '. ' if options else ''}"
            "If it happened in an evaluation, set a smaller config.eval.batch_size than "
            f"{config.eval.batch_size}"
        )

    def _needs(self, found: Memory) -> tuple[int, int]:
        """Returns the bytes of a step on each device, and those of them that activations take."""
        analysis = self.compiled.memory_analysis() if self.compiled else None
        if analysis is None:
            return found.total[0], found.activations[0]
        lasting, passing = program_bytes(analysis)
        return lasting + passing, passing


def _advice(
    experiment: Experiment, found: Memory, fixed: int, passing: int, limit: int | None
) -> list[str]:
    """Returns the settings that need less; of those that share out the batch the first to fit."""
    config, devices = experiment.config, experiment.mesh.size
    batch_size, parts = config.data.batch_size, config.optimizer.accumulation_steps
    unit = devices * (config.model.batch_norm_group_size or 1)
    finer = [n for n in range(parts + 1, batch_size + 1) if batch_size % (n * unit) == 0]
    # A tenth is left free: memory is lost between arrays, and other programs hold some.
    fitting = [n for n in finer if limit and fixed + passing * parts / n <= 0.9 * limit]
    options = []
    if finer:
        chosen = (fitting or finer)[0]
        left = format_bytes(fixed + passing * parts / chosen)
        outcome = f"needs about {left}" + (", which should fit" if fitting else "")
        options += [
            f"config.optimizer.accumulation_steps={chosen} {outcome} (each part of the batch is "
            "then normalised by itself)",
            f"config.data.batch_size={batch_size * parts // chosen} needs as little",
        ]
    if not config.model.rematerialize:
        changed = config.copy_and_resolve_references()
        changed.model.rematerialize = True
        less = estimate(prepare(changed, experiment.mesh)).activations[1]
        share = less / found.activations[1]
        options.append(
            f"config.model.rematerialize=True keeps {share:.0%} of what the gradient asks for, "
            "and computes the rest a second time"
        )
    return options
