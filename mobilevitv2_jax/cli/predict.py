"""`mobilevitv2 predict`: tells what is in pictures."""

from __future__ import annotations

import io
import itertools
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mobilevitv2_jax.cli import flags, help
from mobilevitv2_jax.cli.pictures import expand
from mobilevitv2_jax.errors import ConfigError, ImageError
from mobilevitv2_jax.files import write_whole

if TYPE_CHECKING:  # loading jax takes seconds, and a mistake in the arguments should not
    from mobilevitv2_jax.evaluation.predict import Prediction, Predictor

USAGE = """
Tells what is in pictures: the classes with their probabilities; of a segmentation the share of the
pixels that each covers, and a picture of them.

    mobilevitv2 predict IMAGE ... --pretrained PATH [--top-k 5] [--explain] [--save DIR] [--json]

    mobilevitv2 predict cat.jpg --pretrained runs/digits --best      a run of ours
    mobilevitv2 predict photos 'more/*.png' --pretrained DIR         a folder, a pattern
    mobilevitv2 predict cat.jpg --pretrained DIR --explain           where it is found, as a picture
"""

_FOLDER = "predictions"

_MOST_HEATS = 3  # of a segmentation: one for each of the classes that cover most


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv, positional=("images",)):
        return 0
    options = _options(values)
    paths = expand(values.images)

    from mobilevitv2_jax.evaluation.predict import load_predictor

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        predictor = load_predictor(values.pretrained, **options)
    for note in notes:
        sys.stderr.write(f"note: {note.message}\n")
    folder = values.save
    if folder is None and (predictor.segments or values.explain):
        folder = _FOLDER
    return _predict(predictor, paths, values.batch_size or 8, folder, bool(values.json))


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    flags.define(values, "images", list, "files, folders, or patterns in quotes; without --images")
    flags.define(
        values, "pretrained", str, "a run directory, or weights of any kind that is read; required"
    )
    flags.define(values, "top_k", int, "how many classes are named; default 5")
    flags.define(values, "explain", bool, "draw where the classes are found (Grad-CAM)")
    flags.define(
        values,
        "save",
        str,
        "where predictions.json and pictures are written; default nowhere, and "
        f"{_FOLDER}/ for a segmentation or with --explain",
    )
    flags.define(values, "json", bool, "print JSON in the place of tables")
    flags.define(values, "batch_size", int, "pictures that are computed at a time; default 8")
    flags.define(values, "step", int, "of a run: the step of the checkpoint; default the latest")
    flags.define(values, "best", bool, "of a run: its best checkpoint")
    return values


def _options(values: absl_flags.FlagValues) -> dict[str, Any]:
    """Returns the options of `load_predictor`.

    Raises:
        ConfigError: if something is missing or out of range.
    """
    if not values.images:
        raise ConfigError("name a picture: mobilevitv2 predict IMAGE ... --pretrained PATH")
    if not values.pretrained:
        raise ConfigError(
            "--pretrained is required: a run directory such as runs/digits, or weights"
        )
    if values.step is not None and values.best:
        raise ConfigError("--step and --best exclude each other: give one of them, or neither")
    for option, count in (("--top-k", values.top_k), ("--batch-size", values.batch_size)):
        if count is not None and count < 1:
            raise ConfigError(f"{option} must be at least 1, got {count}")
    options = {"top_k": values.top_k or 5, "explain": bool(values.explain)}
    if values.step is not None or values.best:
        options["checkpoint"] = "best" if values.best else values.step
    return options


def _predict(
    predictor: Predictor, paths: Sequence[str], batch_size: int, folder: str | None, as_json: bool
) -> int:
    """Prints and saves what is found; pictures that cannot be read are named, and passed over."""
    names = _distinct(paths)
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
    records: list[dict[str, Any]] = []
    for path, name, prediction in zip(paths, names, predictor(paths, batch_size), strict=True):
        if isinstance(prediction, ImageError):
            sys.stderr.write(f"error: {prediction}\n")
            records.append({"image": path, "error": str(prediction)})
            continue
        pictures = _draw(predictor, prediction, os.path.join(folder, name)) if folder else {}
        records.append({"image": path, **prediction.to_dict(), **pictures})
        if not as_json:
            sys.stdout.write(_table(path, prediction))
            sys.stdout.writelines(f"  {place}\n" for place in pictures.values())
    text = json.dumps(records, indent=2) + "\n"
    if as_json:
        sys.stdout.write(text)
    if folder is not None:
        write_whole(os.path.join(folder, "predictions.json"), text)
    return int(any("error" in record for record in records))


def _distinct(paths: Sequence[str]) -> list[str]:
    """Returns a name for what belongs to each picture, also where two have the same."""
    taken: set[str] = set()
    names = []
    for path in paths:
        stem = pathlib.Path(path).stem
        counted = (f"{stem}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([stem], counted) if name not in taken)
        taken.add(name)
        names.append(name)
    return names


def _draw(predictor: Predictor, prediction: Prediction, start: str) -> dict[str, str]:
    """Writes the pictures of a prediction, and returns their paths by what they show."""
    from mobilevitv2_jax.evaluation import pictures

    places = {}
    if prediction.classes is not None:
        places["overlay"] = f"{start}.overlay.png"
        shares = {found.index: found.share for found in prediction.found}
        pictures.save_overlay(
            places["overlay"], prediction.image, prediction.classes, shares, predictor.labels
        )
    if prediction.heat:
        places["explanation"] = f"{start}.explanation.png"
        shown = [pair for pair in prediction.heat if pair[0].label != "background"][:_MOST_HEATS]
        heats = [(f"{found.label}  {found.share:.0%}", heat) for found, heat in shown]
        pictures.save_heat(places["explanation"], prediction.image, heats)
    return places


def _table(path: str, prediction: Prediction) -> str:
    """Returns what was found in a picture as a table."""
    table = Table(escape(path), "probability" if prediction.classes is None else "share of pixels")
    for found in prediction.found:
        table.add_row(escape(found.label), f"{found.share:.2%}")
    buffer = io.StringIO()
    Console(file=buffer, width=100).print(table)
    return buffer.getvalue()
