"""Checkpoints of a run: the only file that imports orbax (CheckpointManager, the V0 API)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mobilevitv2_jax.errors import CheckpointError

State = TypeVar("State")

_STEP_DIGITS = 8
"""Width of the step in directory names. Another width would find no steps and start anew."""


class Checkpoints:
    """The checkpoints of one run: the latest ones and the best ones are kept.

    A save returns once the state is copied from the devices, and is written behind; an error
    of the writing surfaces at the next call. Use as a context manager, or call `close`.

    Args:
        directory: where the checkpoints are, or will be.
        keep_latest: how many of the latest are kept.
        keep_best: how many of the best are kept, besides.
        best_metric: which of the metrics given to `save` says what is best; more is better.
        read_only: leave everything as it is, what a running training is writing included.

    Raises:
        CheckpointError: if the directory has files but no checkpoint: starting from zero
            beside them would be a mistake.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_latest: int = 2,
        keep_best: int = 1,
        best_metric: str = "",
        read_only: bool = False,
    ) -> None:
        def rank(metrics: Mapping[str, float]) -> float:
            value = metrics.get(best_metric, -math.inf)
            # A NaN sorts anywhere: it could become the best and push out a good checkpoint.
            return -math.inf if math.isnan(value) else value

        self._rank = rank
        self.directory = epath.Path(directory).resolve()  # orbax takes absolute paths only
        policies = [
            preservation_policy.LatestN(keep_latest),
            # Without best_fn below, orbax would not write the metrics, and forget at a restart
            # which step was best.
            preservation_policy.BestN(
                get_metric_fn=rank, n=keep_best, keep_checkpoints_without_metrics=False
            ),
        ]
        self._manager = ocp.CheckpointManager(
            self.directory,
            # Named here, and not only at each call, so that types can be read before arrays.
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "metadata": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                best_fn=rank,
                best_mode="max",
                step_format_fixed_length=_STEP_DIGITS,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )
        # Whether to stop is asked by the training loop, which counts more than steps; that orbax
        # asks too, with a count of its own, would have processes agree on a moment that is past.
        self._manager.reached_preemption = lambda step: False
        if not self.steps():
            strangers = [path.name for path in self.directory.iterdir() if _is_foreign(path)]
            if strangers:
                raise CheckpointError(
                    f"{self.directory} holds {', '.join(sorted(strangers)[:3])} but no checkpoint "
                    "of this format: move them away, or choose another workdir"
                )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Returns the steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Returns the last step, or None where there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the step with the best metric, or None where none has one."""
        step = self._manager.best_step()
        # Where no step has a better one, orbax takes a NaN, too.
        if step is None or self._rank(self._manager.metrics(step)) == -math.inf:
            return None
        return step

    def save(
        self, step: int, state: Any, metadata: dict[str, Any], metrics: Mapping[str, float] | None
    ) -> None:
        """Saves a state (a dataclass of arrays) with some JSON beside it.

        Raises:
            CheckpointError: if this save was not accepted, or an earlier one failed.
        """
        try:
            # Errors of the last save appear here, and only once.
            self._manager.wait_until_finished()
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_fields(state)),
                    metadata=ocp.args.JsonSave(metadata),
                ),
                metrics=dict(metrics) if metrics else None,
                force=True,
            )
        except Exception as error:
            raise CheckpointError(f"saving to {self.directory} failed: {error}") from error
        if not saved:
            raise CheckpointError(f"the checkpoint of step {step} was not saved")

    def restore(self, step: int, abstract: State) -> tuple[State, dict[str, Any]]:
        """Reads the state of a step, and its metadata.

        Args:
            step: one of `steps()`.
            abstract: the state as shapes, types and shardings; the stored one must match.

        Raises:
            CheckpointError: if the step does not exist, cannot be read, or differs in
                structure, shape or type.
        """
        if step not in self.steps():
            raise CheckpointError(
                f"{self.directory} has no step {step}; it has {self.steps() or 'none'}"
            )
        try:
            stored = _types(self._manager.item_metadata(step)["state"])
            wanted = _types(_fields(abstract))
            differing = [path for path in stored if wanted.get(path) not in (None, stored[path])]
            if differing:  # orbax would cast without a word
                path = differing[0]
                raise ValueError(f"{path} is {stored[path]}, and should be {wanted[path]}")
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(_fields(abstract)),
                    metadata=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:
            raise CheckpointError(
                f"step {step} of {self.directory} cannot be restored: {error}"
            ) from error
        state = dataclasses.replace(abstract, **restored["state"])  # type: ignore[type-var]
        return state, restored["metadata"]

    def close(self) -> None:
        """Waits for the last save.

        Raises:
            CheckpointError: if it failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise CheckpointError(f"saving to {self.directory} failed: {error}") from error
        finally:
            self._manager.close()


def _fields(state: Any) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _types(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): str(leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _is_foreign(path: epath.Path) -> bool:
    """Returns whether a path is neither a save that was cut off nor a hidden file."""
    return "orbax-checkpoint-tmp" not in path.name and not path.name.startswith(".")
