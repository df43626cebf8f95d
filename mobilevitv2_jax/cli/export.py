"""`mobilevitv2 export`: writes a model for servers and phones, and compares it with JAX."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags

from mobilevitv2_jax.cli import flags, help
from mobilevitv2_jax.cli.pictures import expand
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.export.interface import ANY, OUTPUTS, TARGETS, Options, check

USAGE = """
Writes a model as a file for servers and phones, runs that file in its own runtime beside JAX on
real pictures, and leaves it only if both say the same. FILE.json beside it tells what it takes and
returns.

    mobilevitv2 export --pretrained PATH --to stablehlo|onnx|litert|coreml --out FILE

    mobilevitv2 export --pretrained runs/digits --to stablehlo --batch any --out digits.stablehlo
    mobilevitv2 export --pretrained runs/digits --to litert --quantize int8 --out digits.tflite
    mobilevitv2 export --pretrained DIR --to onnx --preprocess --output top_k --out model.onnx

takes pictures in uint8 and returns the five best classes. docs/export.md has the lines that run
each kind of file.
"""


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv):
        return 0
    for name in ("pretrained", "to", "out"):
        if not values[name].value:
            raise ConfigError(
                f"--{name} is required: mobilevitv2 export --pretrained PATH --to "
                f"{'|'.join(TARGETS)} --out FILE"
            )
    if values.step is not None and values.best:
        raise ConfigError("--step and --best exclude each other: give one of them, or neither")
    options = _options(values)
    check(options)
    checkpoint = "best" if values.best else "latest" if values.step is None else values.step

    # Here and not above: loading jax takes seconds, and a mistake in the arguments should not.
    from mobilevitv2_jax.export.artefact import export
    from mobilevitv2_jax.training.report import aligned

    report = export(
        values.pretrained, values.out, options, checkpoint=checkpoint, average=not values.raw
    )
    notes = "".join(f"note: {note}\n" for note in report.notes)
    sys.stdout.write(f"{aligned(report.rows)}\n{notes}")
    return 0


def _options(values: absl_flags.FlagValues) -> Options:
    given: dict[str, Any] = {
        name: values[name].value
        for name in ("any_size", "vjp", "preprocess", "output", "top_k", "examples", "force")
        if values[name].value is not None
    }
    if values.quantize is not None:
        given["precision"] = values.quantize
    if values.batch is not None:
        given["batch"] = _batch(values.batch)
    for name in ("size", "from_size"):
        if values[name].value is not None:
            given[name] = _size(name, values[name].value)
    if values.images:
        given["images"] = tuple(expand(values.images))
    return Options(to=values.to, **given)


def _batch(text: str) -> int | None:
    if text == ANY:
        return None
    if not text.isdecimal():
        raise ConfigError(f"--batch must be a number or {ANY}, got {text!r}")
    return int(text)


def _size(name: str, text: Any) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found:
        option = name.replace("_", "-")
        raise ConfigError(f"--{option} must be a side or HEIGHTxWIDTH in pixels, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    outputs = "; ".join(f"{', '.join(names)} ({task})" for task, names in OUTPUTS.items())
    for name, kind, description in (
        ("pretrained", str, "a run directory, or weights of any kind that is read; required"),
        ("to", str, f"{', '.join(TARGETS)}; required"),
        ("out", str, "the file to be made; required"),
        ("quantize", str, "float16, dynamic_int8, int8 or int8_weights; default none"),
        ("size", str, "side, or HEIGHTxWIDTH, that the model sees; default its processor's"),
        ("batch", str, f"images at a time, or {ANY} (stablehlo, onnx); default 1"),
        ("any_size", bool, "stablehlo: take any height and width in multiples of 32"),
        ("vjp", bool, "stablehlo: carry the derivative by the input"),
        ("preprocess", bool, "take RGB in uint8, and scale and order it inside"),
        ("from_size", str, "HEIGHTxWIDTH of pictures that are resized and cropped inside, too"),
        ("output", str, f"{outputs}; default logits"),
        ("top_k", int, "how many classes top_k names; default 5"),
        ("images", list, "pictures to compare on, and to calibrate int8 with; default the run's"),
        ("examples", int, "at most so many pictures are compared; default 1024"),
        ("raw", bool, "of a run: the weights, not their moving average"),
        ("step", int, "of a run: the step of the checkpoint; default the latest"),
        ("best", bool, "of a run: its best checkpoint"),
        ("force", bool, "replace a file that exists"),
    ):
        flags.define(values, name, kind, description)
    return values
