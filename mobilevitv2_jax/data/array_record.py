"""TFDS data sets in ArrayRecord shards, written by several processes and without TensorFlow.

A set comes into being in `<version>.incomplete` and takes its name when everything in it is
whole. A shard does the same, so that whatever ends a preparation, calling it again goes on with
the shards that are missing. The result is a data set as TFDS itself writes it: `data/tfds.py`,
and `tfds.data_source` with or without TensorFlow, read it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from mobilevitv2_jax.data.examples import Description, Examples
from mobilevitv2_jax.data.image import CorruptError
from mobilevitv2_jax.data.parallel import shared_out
from mobilevitv2_jax.errors import DataError
from mobilevitv2_jax.files import is_local, write_whole

SHARD_BYTES = 128 * 2**20
"""Size of a shard unless asked otherwise: that of the 1,024 in which TFDS stores ImageNet."""

REPORT = "preparation.json"
"""Beside the shards: what they were made from, what was left out, what was changed."""

_PLAN = "plan.json"  # of an unfinished set: what it is made from
_RESULTS = "results"  # of an unfinished set: a folder with a file for each finished shard
_OVERHEAD = 1.02  # of the shards over what is in them


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a preparation is.

    Attributes:
        shards: finished, of this run and of earlier ones.
        all_shards: how many there will be.
        examples: in the finished shards.
        all_examples: how many there will be.
        written: examples that this run has written.
        seconds: that this run has taken.
    """

    shards: int
    all_shards: int
    examples: int
    all_examples: int
    written: int
    seconds: float

    @property
    def remaining(self) -> float:
        """Seconds until the end, at the speed of this run so far."""
        return (self.all_examples - self.examples) * self.seconds / max(self.written, 1)


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What became of a split.

    Attributes:
        lengths: examples in each shard.
        num_bytes: of all records.
        corrupt: a line for each example that was left out.
        remarks: a line for each example that was changed.
    """

    lengths: tuple[int, ...]
    num_bytes: int
    corrupt: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(self.lengths)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One file: a part of a split."""

    dataset: str
    split: str
    number: int
    count: int
    examples: int

    @property
    def name(self) -> str:
        place = f"{self.number:05d}-of-{self.count:05d}"
        return f"{self.dataset}-{self.split}.array_record-{place}"

    def __len__(self) -> int:
        return self.examples // self.count + (self.number < self.examples % self.count)

    def indices(self) -> np.ndarray:
        """Returns which examples are in it, and in which order: the split's, shuffled.

        So that a part of a split, such as TFDS's `train[:10%]`, is a fair sample of it. The
        stream of RandomState is the same in every version of NumPy.
        """
        order = np.random.RandomState(0).permutation(self.examples)
        return np.array_split(order, self.count)[self.number]


def write(
    description: Description,
    splits: Mapping[str, Examples],
    data_dir: str | os.PathLike[str],
    *,
    processes: int,
    tell: Callable[[Progress], None],
    accept: Callable[[Mapping[str, SplitReport]], None] = lambda reports: None,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[pathlib.Path, dict[str, SplitReport]]:
    """Writes a data set, or goes on writing it where an earlier call was stopped.

    Args:
        description: the data set.
        splits: its examples.
        data_dir: where data sets live; this one becomes `<data_dir>/<name>/<version>`.
        processes: how many write; 0 writes in this one.
        tell: is called with the progress, when it begins and after each shard.
        accept: is called with what became of the splits before the set takes its name; a
            `DataError` of it leaves the set unfinished. Shards are kept, but for those from
            which examples were left out.
        shard_bytes: size of a shard.

    Returns:
        The directory of the data set, and what became of each split.

    Raises:
        DataError: if the directory holds something else, or has no room.
    """
    if not is_local(data_dir):
        raise DataError(f"{data_dir} must be on a disk of this machine: copy the set afterwards")
    directory = pathlib.Path(data_dir) / description.name / description.version
    plan = _plan(description, splits, shard_bytes)
    if not directory.exists():
        with _claimed(directory):
            unfinished = directory.with_name(directory.name + ".incomplete")
            _begin(unfinished, plan)
            shards = [
                _Shard(description.name, split, number, part["shards"], part["examples"])
                for split, part in plan["splits"].items()
                for number in range(part["shards"])
            ]
            _write_shards(unfinished, description, splits, shards, processes, tell)
            reports = {split: _split_report(unfinished, shards, split) for split in splits}
            try:
                accept(reports)
            except DataError:
                _forget_corrupt(unfinished, shards)
                raise
            _finish(unfinished, description, plan, reports)
            unfinished.rename(directory)
    return directory, _read_finished(directory, plan)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _plan(
    description: Description, splits: Mapping[str, Examples], shard_bytes: int
) -> dict[str, Any]:
    """Returns what tells this preparation from another one."""
    parts = {}
    for split, examples in splits.items():
        if not len(examples):
            raise DataError(f"split {split} of {description.name} has no examples")
        shards = math.ceil(examples.num_bytes / shard_bytes)
        parts[split] = {
            "source": examples.fingerprint,
            "examples": len(examples),
            "shards": min(max(shards, 1), len(examples)),
        }
    return {"name": description.name, "version": description.version, "splits": parts}


@contextlib.contextmanager
def _claimed(directory: pathlib.Path) -> Iterator[None]:
    """Keeps a second preparation of the same set away."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    file = directory.with_name(directory.name + ".lock")
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process is preparing {directory}") from None
        except OSError as error:  # of file systems without locks
            raise DataError(f"{file} cannot be locked: {error}") from error
        yield
        file.unlink()


def _begin(unfinished: pathlib.Path, plan: Mapping[str, Any]) -> None:
    """Makes the directory, or goes on with it if it was begun with the same plan."""
    file = unfinished / _PLAN
    if file.exists():
        _check_plan(unfinished, json.loads(file.read_text()), plan)
    else:
        (unfinished / _RESULTS).mkdir(parents=True, exist_ok=True)
        write_whole(file, _json(plan))
    for left in unfinished.glob("*.tmp"):  # by a process that was killed
        left.unlink()


def _finish(
    unfinished: pathlib.Path,
    description: Description,
    plan: Mapping[str, Any],
    reports: Mapping[str, SplitReport],
) -> None:
    """Makes of finished shards a data set: all but its name."""
    _write_metadata(unfinished, description, reports)
    parts = {split: dataclasses.asdict(report) for split, report in reports.items()}
    write_whole(unfinished / REPORT, _json({**plan, "reports": parts}))
    shutil.rmtree(unfinished / _RESULTS)
    (unfinished / _PLAN).unlink()


def _check_plan(directory: pathlib.Path, found: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    before, wanted = found["splits"], plan["splits"]
    changed = [
        f"{split}: {before.get(split)} -> {wanted.get(split)}"
        for split in sorted(before.keys() | wanted.keys())
        if before.get(split) != wanted.get(split)
    ]
    if changed:
        raise DataError(
            f"{directory} was begun with other data ({'; '.join(changed)}): "
            "give the same again, remove it, or choose another --out"
        )


def _read_finished(directory: pathlib.Path, plan: Mapping[str, Any]) -> dict[str, SplitReport]:
    """Returns the reports of a set that is finished already."""
    report = directory / REPORT
    if not report.exists():
        raise DataError(
            f"{directory} exists, and this program did not make it: choose another --out"
        )
    found = json.loads(report.read_text())
    _check_plan(directory, found, plan)
    return {
        split: SplitReport(**{key: _tuple(value) for key, value in part.items()})
        for split, part in found["reports"].items()
    }


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _write_shards(
    directory: pathlib.Path,
    description: Description,
    splits: Mapping[str, Examples],
    shards: Sequence[_Shard],
    processes: int,
    tell: Callable[[Progress], None],
) -> None:
    missing = [shard for shard in shards if _result(directory, shard) is None]
    _check_room(directory, splits, missing)
    total = sum(len(examples) for examples in splits.values())
    absent = sum(map(len, missing))
    started = time.monotonic()

    def progress(done: int, written: int) -> Progress:
        finished = len(shards) - len(missing) + done
        examples = total - absent + written
        seconds = time.monotonic() - started
        return Progress(finished, len(shards), examples, total, written, seconds)

    tell(progress(0, 0))
    written = 0
    work = functools.partial(_write_in_turn, os.fspath(directory), description, splits)
    with shared_out(work, missing, processes) as lengths:
        for done, examples in enumerate(lengths, 1):
            written += examples
            tell(progress(done, written))


def _check_room(
    directory: pathlib.Path, splits: Mapping[str, Examples], missing: Sequence[_Shard]
) -> None:
    needed = sum(splits[shard.split].num_bytes / shard.count for shard in missing) * _OVERHEAD
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DataError(
            f"{directory} needs {needed / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB free: "
            "make room, or choose another --out"
        )


def _write_in_turn(
    directory: str,
    description: Description,
    splits: Mapping[str, Examples],
    shards: Sequence[_Shard],
) -> Iterator[int]:
    features = description.features()
    for shard in shards:
        try:
            _write_shard(pathlib.Path(directory), shard, splits[shard.split], features)
        except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError
            raise DataError(
                f"cannot write {shard.name}: {error}; finished shards are kept"
            ) from error
        yield len(shard)


def _write_shard(directory: pathlib.Path, shard: _Shard, examples: Examples, features: Any) -> None:
    """Writes one shard and then its result, whole or not at all."""
    temporary = directory / f"{shard.name}.{os.getpid()}.tmp"
    result: dict[str, Any] = {"examples": 0, "bytes": 0, "corrupt": [], "remarks": []}
    # Random access reads one record at a time; JPEG does not get smaller by compression.
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    try:
        for index in shard.indices():
            try:
                record = examples[int(index)]
            except CorruptError as error:
                result["corrupt"].append(str(error))
                continue
            data = features.serialize_example(features.encode_example(dict(record.values)))
            writer.write(data)
            result["examples"] += 1
            result["bytes"] += len(data)
            result["remarks"] += [record.remark] if record.remark else []
    finally:
        writer.close()
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.rename(directory / shard.name)
    write_whole(directory / _RESULTS / f"{shard.name}.json", _json(result))


def _result(directory: pathlib.Path, shard: _Shard) -> dict[str, Any] | None:
    """Returns the result of a shard, or None where the shard is not finished."""
    file = directory / _RESULTS / f"{shard.name}.json"
    if not file.exists() or not (directory / shard.name).exists():
        return None
    result = json.loads(file.read_text())
    reader = array_record_module.ArrayRecordReader(str(directory / shard.name))
    whole = reader.num_records() == result["examples"]
    reader.close()
    return result if whole else None


def _forget_corrupt(directory: pathlib.Path, shards: Sequence[_Shard]) -> None:
    """Has the shards from which examples were left out written again: they may be mended."""
    for shard in shards:
        if (_result(directory, shard) or {}).get("corrupt"):
            (directory / _RESULTS / f"{shard.name}.json").unlink()


def _split_report(directory: pathlib.Path, shards: Sequence[_Shard], split: str) -> SplitReport:
    results = [_result(directory, shard) or {} for shard in shards if shard.split == split]
    return SplitReport(
        lengths=tuple(result["examples"] for result in results),
        num_bytes=sum(result["bytes"] for result in results),
        corrupt=tuple(sorted(line for result in results for line in result["corrupt"])),
        remarks=tuple(sorted(line for result in results for line in result["remarks"])),
    )


def _write_metadata(
    directory: pathlib.Path, description: Description, reports: Mapping[str, SplitReport]
) -> None:
    import tensorflow_datasets as tfds

    def template(split: str | None) -> Any:
        return tfds.core.ShardedFileTemplate(
            dataset_name=description.name,
            data_dir=directory,
            split=split,
            filetype_suffix="array_record",
        )

    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=description.features(),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=list(report.lengths),
                num_bytes=report.num_bytes,
                filename_template=template(split),
            )
            for split, report in reports.items()
        ],
        version=description.version,
        filename_template=template(None),
        description=description.text,
        homepage=description.homepage,
        check_data=False,
    )
