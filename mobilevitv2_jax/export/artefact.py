"""From weights to an artefact that has been compared with them; nothing is left of a failure."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from mobilevitv2_jax import __version__
from mobilevitv2_jax.errors import ConfigError, ExportError
from mobilevitv2_jax.export import examples, proof
from mobilevitv2_jax.export.examples import Examples
from mobilevitv2_jax.export.fold import lean
from mobilevitv2_jax.export.interface import ANY, Backend, Options, backend, check
from mobilevitv2_jax.export.program import (
    Program,
    fixed_rules,
    make_program,
    resize_plain,
    task_of,
)
from mobilevitv2_jax.files import write_whole
from mobilevitv2_jax.processing import MobileViTImageProcessor
from mobilevitv2_jax.weights import pretrained
from mobilevitv2_jax.weights.convert import Report

FORMAT = "mobilevitv2_jax.export/1"
_CALIBRATION = 128  # pictures


@dataclasses.dataclass(frozen=True)
class Subject:
    """Weights that are to be exported, with the rules of their images.

    Attributes:
        model: as it was loaded, in float32.
        processor: all of its results have the size that the model is to see.
        run: the directory of the run that the weights are from; None if they are not of a run.
        where: the file or directory they were read from.
        weights: of a run, which: `checkpoint` and `average` of `read`.
    """

    model: Any
    processor: MobileViTImageProcessor
    run: str | None
    where: str
    weights: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def task(self) -> str:
        """The task of the model."""
        return task_of(self.model)


def read(
    source: epath.PathLike,
    options: Options,
    checkpoint: str | int = "latest",
    average: bool = True,
) -> tuple[Subject, list[str]]:
    """Returns what is to be exported, and what there is to say of its weights.

    Args:
        source: whatever `from_pretrained` reads.
        options: of the export.
        checkpoint: of a run directory: "latest", "best", or a step.
        average: of a run directory: the moving average of the weights, not the weights.

    Raises:
        WeightsError: if it cannot be read.
        ConfigError: if it has no head.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = pretrained.load(
            source,
            checkpoint=checkpoint,
            average=average,
            dtype="float32",
            param_dtype="float32",
        )
    stored = found.stored
    processor = MobileViTImageProcessor.from_dict(stored.preprocessor)
    notes = [str(warning.message) for warning in caught]
    if stored.assumed_images:
        notes.append(stored.assumed_images)
    rules = fixed_rules(processor, options.size, task_of(found.model))
    if stored.step is None:
        return Subject(found.model, rules, None, stored.where), notes
    weights = {"checkpoint": stored.step, "average": average}
    return Subject(found.model, rules, str(source), stored.where, weights), notes


def export(
    source: epath.PathLike,
    out: epath.PathLike,
    options: Options,
    *,
    checkpoint: str | int = "latest",
    average: bool = True,
) -> Report:
    """Writes an artefact and, beside it, a JSON file that tells all about it.

    It is compared with JAX before it takes its place; see `proof.py`.

    Args:
        source: whatever `from_pretrained` reads.
        out: the file to be made.
        options: what is asked for.
        checkpoint: of a run directory: "latest", "best", or a step.
        average: of a run directory: the moving average of the weights, not the weights.

    Raises:
        ConfigError: if the options cannot be met, or the file exists.
        WeightsError: if the source cannot be read.
        ExportError: if the artefact differs from JAX by more than its precision allows.
    """
    check(options)
    _place(out, options)
    backend(options.to)
    subject, notes = read(source, options, checkpoint, average)
    report = export_subject(subject, out, options)
    return Report(report.rows, notes + report.notes)


def export_subject(subject: Subject, out: epath.PathLike, options: Options) -> Report:
    """Writes an artefact of a model that has been read; see `export`."""
    place = _place(out, options)
    engine = backend(options.to)
    examples.check_representative(subject.run, options)
    reference = make_program(subject.model, subject.processor, options, resize_plain)
    model = lean(subject.model, options.target.convolved)
    program = make_program(model, subject.processor, options, engine.resize)
    pictures = examples.held_out(subject.run, subject.processor, options)
    card = _card(subject, program, options)
    with _beside(place) as made:
        engine.write(program, options.precision, made, _calibration(subject, options), card)
        lines = _prove(engine, made, reference, pictures, subject, options)
        card |= {"proof": lines, "files": _checksums(made)}
        advice = engine.advice(made)
        _move(made, place)
        write_whole(f"{place}.json", json.dumps(card, indent=2) + "\n")
    rows = {
        "read": subject.where,
        "written": f"{place} ({options.to}, {options.precision}, {_bytes(place):,} bytes)",
        "takes": f"{program.input} {_shown(program.shape)} {program.dtype}",
        "returns": ", ".join(program.outputs),
        **lines,
    }
    return Report(rows, advice)


def _place(out: epath.PathLike, options: Options) -> pathlib.Path:
    """Returns where the artefact will be, if it may be there.

    Raises:
        ConfigError: if the name has another suffix, or a file is there.
    """
    place, suffix = pathlib.Path(out), options.target.suffix
    if place.suffix != suffix:
        raise ConfigError(f"--out must end with {suffix} for {options.to}, got {str(out)!r}")
    if not place.parent.is_dir():
        raise ConfigError(f"--out: there is no directory {place.parent}: make it first")
    if place.exists() and not options.force:
        raise ConfigError(f"{place} exists: choose another --out, or give --force to replace it")
    return place


def _calibration(subject: Subject, options: Options) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: examples.calibration(subject.run, subject.processor, options, _CALIBRATION)


def _prove(
    engine: Backend,
    made: pathlib.Path,
    reference: Program,
    pictures: Examples,
    subject: Subject,
    options: Options,
) -> dict[str, str]:
    """Returns what the comparison found, in words by name.

    Raises:
        ExportError: if the artefact differs by more than its precision allows.
    """
    run = engine.load(made)
    if run is None:
        return {"check": f"{options.to} does not run on this machine: not verified on a device"}
    inputs = (
        pictures.pictures
        if options.preprocess
        else examples.scaled(subject.processor, pictures.pictures)
    )
    found = proof.compare(run, reference, pictures, inputs)
    proof.check(found, options.precision)
    return {"check": found.line}


def _card(subject: Subject, program: Program, options: Options) -> dict[str, Any]:
    """Returns what is to be known of an artefact, in a form for JSON."""
    return {
        "format": FORMAT,
        "to": options.to,
        "precision": options.precision,
        "task": subject.task,
        "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": _versions(options),
        "source": subject.where,
        "weights": dict(subject.weights),
        "input": {
            "name": program.input,
            "shape": [ANY if side is None else side for side in program.shape],
            "type": program.dtype,
            "multiple": program.multiple if options.any_size else None,
            "layout": "NHWC",
            "channels": _channels(subject.processor, options),
        },
        "outputs": list(program.outputs),
        "labels": list(program.labels),
        "config": subject.model.config.to_dict(),
        "preprocessor": subject.processor.to_dict(),
        "options": dataclasses.asdict(options),
    }


def _versions(options: Options) -> dict[str, str]:
    packages = ("jax", "flax", *options.target.packages)
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"mobilevitv2_jax": __version__, **found}


def _channels(processor: MobileViTImageProcessor, options: Options) -> str:
    return "BGR" if processor.do_flip_channel_order and not options.preprocess else "RGB"


def _shown(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join(ANY if side is None else str(side) for side in shape) + "]"


# ---- Files -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _beside(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields where an artefact can be made, on the same disk; what is still there goes."""
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as directory:
        yield pathlib.Path(directory) / place.name


def _move(made: pathlib.Path, place: pathlib.Path) -> None:
    if place.is_dir():  # an artefact of several files, which cannot be replaced at once
        shutil.rmtree(place)
    made.replace(place)


def files(artefact: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of an artefact: itself, or those below it."""
    if not artefact.is_dir():
        return [artefact]
    return sorted(path for path in artefact.rglob("*") if path.is_file())


def _checksums(made: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(made.parent)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files(made)
    }


def _bytes(place: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in files(place))


def read_card(artefact: epath.PathLike) -> Mapping[str, Any]:
    """Returns what is written beside an artefact.

    Raises:
        ExportError: if there is no artefact with such a file.
    """
    path = pathlib.Path(f"{artefact}.json")
    try:
        card = json.loads(path.read_text()) if pathlib.Path(artefact).exists() else {}
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read ({error}): export {artefact} again") from None
    if card.get("format") != FORMAT:
        raise ExportError(f"{artefact} with its {path.name} is not what mobilevitv2 export writes")
    return card
