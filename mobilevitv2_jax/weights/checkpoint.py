"""Checkpoints of a run: the only file that imports orbax (CheckpointManager, the V0 API)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mobilevitv2_jax.errors import CheckpointError
from mobilevitv2_jax.files import absolute, files_below, is_local, move, write_whole

State = TypeVar("State")

_STEP_DIGITS = 8
"""Width of the step in directory names. Another width would find no steps and start anew."""

_MANIFEST = "checksums.json"
"""In the directory of a step: size and SHA-256 of every other file there."""

_UNFINISHED = "it is still being written, or was cut off"

_COMMITTED = "commit_success.txt"
"""What orbax writes last into a directory on an object store, which cannot rename it into place."""

_ROOM = 2.2
"""Free space that a save needs, in sizes of the state: orbax writes shards and then merges them."""


def _say_nothing(_: str) -> None:
    pass


class Checkpoints:
    """The checkpoints of one run: the latest ones and the best ones are kept.

    A save returns once the state is copied from the devices, and is written behind; an error
    of the writing surfaces at the next call. Once written, a step gets a manifest of checksums:
    orbax does not notice a flipped bit in an array. All steps are compared with their manifests
    when they are opened; one that differs is damaged and not used: it is moved into `damaged`
    beside the directory, for a training that goes on will come to its step again. Use as a
    context manager, or call `close`.

    Args:
        directory: where the checkpoints are, or will be.
        keep_latest: how many of the latest are kept.
        keep_best: how many of the best are kept, besides.
        best_metric: which of the metrics given to `save` says what is best; more is better.
        read_only: leave everything as it is, damaged steps and what a running training is
            writing included.
        tell: is given a line for each damaged step.

    Raises:
        CheckpointError: if the directory has files but no checkpoint, or damaged checkpoints
            alone: starting from zero beside them would be a mistake.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_latest: int = 2,
        keep_best: int = 1,
        best_metric: str = "",
        read_only: bool = False,
        tell: Callable[[str], None] = _say_nothing,
    ) -> None:
        def rank(metrics: Mapping[str, float]) -> float:
            value = metrics.get(best_metric, -math.inf)
            # A NaN sorts anywhere: it could become the best and push out a good checkpoint.
            return -math.inf if math.isnan(value) else value

        self._rank = rank
        self._writing: threading.Thread | None = None
        self._failure: Exception | None = None  # not raised yet
        self._has_failed = False
        self.directory = absolute(directory)  # orbax takes no others
        self._damaged: dict[int, str] = {}
        if read_only or jax.process_index() == 0:
            self._damaged = self._examine(tell, read_only)
        if not read_only:
            # Before orbax reads the directory, for it stumbles over a damaged file.
            for step in list(self._damaged):
                tell(f"moved step {step} to {self._set_aside(step)}")
                del self._damaged[step]
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints have been moved")
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
                # Else it reads the metrics of all steps, and stumbles over those of a damaged one.
                lightweight_initialize=read_only,
            ),
        )
        # Whether to stop is asked by the training loop, which counts more than steps; that orbax
        # asks too, with a count of its own, would have processes agree on a moment that is past.
        self._manager.reached_preemption = lambda step: False
        if not self.steps():
            known = {self._step_directory(step).name for step in self._damaged}
            strangers = [
                path.name for path in self._paths() if _is_foreign(path) and path.name not in known
            ]
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
        return sorted(set(self._manager.all_steps()) - self._damaged.keys())

    def latest_step(self) -> int | None:
        """Returns the last step, or None where there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step with the best metric, or None where none has one."""
        # Not orbax's own: it knows of no damage, and takes a NaN where there is nothing better.
        ranks = {step: self._rank(self._manager.metrics(step) or {}) for step in self.steps()}
        known = {step: rank for step, rank in ranks.items() if rank > -math.inf}
        return max(known, key=lambda step: (known[step], step), default=None)

    def damage(self, step: int) -> str | None:
        """Returns what is wrong with the files of a step, or None if nothing is."""
        directory = self._step_directory(step)
        try:
            manifest = json.loads((directory / _MANIFEST).read_text())
            expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
        except FileNotFoundError:
            return f"it has no {_MANIFEST}, so it was not complete when its process died"
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"its {_MANIFEST} cannot be read"
        for name, (size, digest) in expected.items():
            path = directory / name
            try:
                found = path.stat().length, _sha256(path)
            except FileNotFoundError:
                return f"{name} is missing"
            if found[0] != size:
                return f"{name} has {found[0]} bytes, and should have {size}"
            if found[1] != digest:
                return f"{name} has another checksum than when it was written"
        return None

    def save(
        self, step: int, state: Any, metadata: dict[str, Any], metrics: Mapping[str, float] | None
    ) -> None:
        """Saves a state (a dataclass of arrays) with some JSON beside it.

        Raises:
            CheckpointError: if this save was not accepted, or an earlier one failed.
        """
        self._wait()
        self._check_room(state)
        try:
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
            raise self._failed(error) from error
        if not saved:
            raise CheckpointError(f"the checkpoint of step {step} was not saved")
        self._writing = threading.Thread(target=self._complete, args=(step,), name="checkpoint")
        self._writing.start()

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Gives a step that was saved without metrics those that were found later.

        Every process calls it.
        """
        self._wait()
        if jax.process_index() == 0:
            # Where orbax has them, and reads them from, whatever is said of the step elsewhere.
            place = self._step_directory(step) / "metrics"
            place.mkdir(exist_ok=True)
            write_whole(place / "metrics", json.dumps(dict(metrics)))
            self._write_manifest(step)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("metrics have been added")
        self._manager.reload()

    def has_metrics(self, step: int) -> bool:
        """Returns whether a step has been evaluated."""
        return bool(self._manager.metrics(step))

    def restore(self, step: int, abstract: State) -> tuple[State, dict[str, Any]]:
        """Reads the state of a step, and its metadata.

        Args:
            step: one of `steps()`.
            abstract: the state as shapes, types and shardings; the stored one must match.

        Raises:
            CheckpointError: if the step does not exist, is damaged (the file is named), or
                differs in structure, shape or type.
        """
        self._check_kept(step)
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

    def read(self, step: int, names: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
        """Reads some of the dicts of arrays of a step's state, onto the host.

        Raises:
            CheckpointError: if the step does not exist, is damaged, or has no such dict.
        """
        self._check_kept(step)
        try:
            stored = self._manager.item_metadata(step)["state"]
            wanted = {name: dict.fromkeys(stored[name], 0) for name in names}
            as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
            arguments = ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=jax.tree.map(lambda _: as_numpy, wanted),
                partial_restore=True,
            )
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                return reader.restore(self._step_directory(step) / "state", args=arguments)
        except Exception as error:
            raise CheckpointError(
                f"step {step} of {self.directory} cannot be read: {error}"
            ) from error

    def close(self) -> None:
        """Waits for the last save.

        Raises:
            CheckpointError: if it failed.
        """
        try:
            self._wait()
        finally:
            # Orbax would raise a failed write again, in the place of the error that told it.
            with contextlib.suppress(*[Exception] * self._has_failed):
                self._manager.close()

    def _check_kept(self, step: int) -> None:
        if step in self._damaged:
            raise CheckpointError(
                f"step {step} of {self.directory} is damaged: {self._damaged[step]}"
            )
        if step not in self.steps():
            raise CheckpointError(
                f"{self.directory} has no step {step}; it has {self.steps() or 'none'}"
            )

    def _examine(self, tell: Callable[[str], None], read_only: bool) -> dict[int, str]:
        """Returns what is wrong with each damaged step, and why others are not to be used."""
        paths = [path for path in self._paths() if _is_step(path) and not _is_cut_off(path)]
        steps = sorted(int(path.name) for path in paths)
        found = {step: damage for step in steps if (damage := self.damage(step))}
        damaged = []
        for step, damage in found.items():
            place = self._step_directory(step)
            # A training that goes on beside a reader removes old steps, and completes the last.
            if read_only and not place.exists():
                continue
            if read_only and step == steps[-1] and not (place / _MANIFEST).exists():
                tell(f"step {step} of {self.directory} is not used: {_UNFINISHED}")
                continue
            damaged.append(step)
            tell(f"DAMAGED CHECKPOINT: step {step} of {self.directory} is not used: {damage}")
        # Two are kept at least, so that one alone is a run's first. Without a manifest, there has
        # never been a whole one: starting anew loses nothing.
        first = len(steps) == 1 and not (self._step_directory(steps[0]) / _MANIFEST).exists()
        if damaged and damaged == steps and not first:
            raise CheckpointError(
                f"every checkpoint of {self.directory} is damaged (step {steps[-1]}: "
                f"{found[steps[-1]]}): bring back a copy, or choose another workdir"
            )
        return found

    def _complete(self, step: int) -> None:
        """Waits until a step is written, then writes its manifest; runs beside the training."""
        try:
            # Orbax reports an error of the writing here, and only once.
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                self._write_manifest(step)
        except Exception as error:
            self._failure, self._has_failed = error, True

    def _write_manifest(self, step: int) -> None:
        directory = self._step_directory(step)
        manifest = {
            name: {"size": path.stat().length, "sha256": _sha256(path)}
            for name, path in files_below(directory)
            if name != _MANIFEST
        }
        write_whole(directory / _MANIFEST, json.dumps(manifest, indent=1) + "\n")

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.join()
        if self._failure is not None:
            error, self._failure = self._failure, None
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"saving to {self.directory} failed: {error}. Earlier checkpoints are whole: mend what "
            "failed, and run the same command again"
        )

    def _check_room(self, state: Any) -> None:
        if not is_local(self.directory):
            return
        needed = _ROOM * sum(leaf.nbytes for leaf in jax.tree.leaves(_fields(state)))
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise CheckpointError(
                f"{self.directory} has {free / 1e6:,.3g} MB of free space, and a checkpoint needs "
                f"{needed / 1e6:,.3g} MB while it is written: free some, and run the same command "
                "again"
            )

    def _paths(self) -> list[epath.Path]:
        try:
            return list(self.directory.iterdir())
        except FileNotFoundError:  # on an object store what is empty is not there
            return []

    def _step_directory(self, step: int) -> epath.Path:
        return self.directory / f"{step:0{_STEP_DIGITS}d}"

    def _set_aside(self, step: int) -> epath.Path:
        source = self._step_directory(step)
        place = self.directory.parent / "damaged"
        place.mkdir(parents=True, exist_ok=True)
        names = (source.name + (f"-{number}" if number else "") for number in itertools.count())
        target = next(place / name for name in names if not (place / name).exists())
        move(source, target)
        return target


def write_tree(directory: epath.PathLike, tree: Mapping[str, Any]) -> None:
    """Writes nested dicts of arrays, as orbax's `StandardCheckpointer` restores them."""
    with ocp.StandardCheckpointer() as writer:
        writer.save(epath.Path(directory).resolve(), dict(tree))


def _fields(state: Any) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _types(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): str(leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_step(path: epath.Path) -> bool:
    return re.fullmatch(rf"\d{{{_STEP_DIGITS}}}", path.name) is not None


def _is_cut_off(path: epath.Path) -> bool:
    """Returns whether a path is a save that was not completed."""
    if is_local(path):
        return "orbax-checkpoint-tmp" in path.name
    return _is_step(path) and not (path / _COMMITTED).exists()


def _is_foreign(path: epath.Path) -> bool:
    """Returns whether a path is neither a save that was cut off nor a hidden file."""
    return not _is_cut_off(path) and not path.name.startswith(".")
