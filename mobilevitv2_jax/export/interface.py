"""What can be exported, and the interface that every format keeps; imports neither jax nor flax.

A format is a module with the functions of `Backend`. What it can do stands here, in `TARGETS`, so
that a wish that cannot be met is refused before anything is loaded or computed.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.models.config import nearest

if TYPE_CHECKING:
    from mobilevitv2_jax.export.program import Program, Resize

Outputs = tuple[np.ndarray, ...]
Run = Callable[[np.ndarray], Outputs]
"""An artefact in its own runtime: takes a batch, returns the outputs in their order."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """What an artefact may differ by from JAX, on real images.

    Attributes:
        difference: largest difference of an output over the largest magnitude that JAX gives it;
            None where rounding is coarse, and accuracy is what counts.
        agreement: least share of images, or of pixels, that are given the same class.
        loss: how much held-out top-1, and how much mIoU, may be lost, where labels are known.
    """

    difference: float | None
    agreement: float
    loss: tuple[float, float]


BOUNDS = {
    "float32": Bound(1e-4, 0.99, (0.01, 0.01)),
    "float16": Bound(1e-2, 0.98, (0.01, 0.01)),
    "dynamic_int8": Bound(None, 0.9, (0.01, 0.02)),
    "int8": Bound(None, 0.9, (0.01, 0.02)),
    "int8_weights": Bound(None, 0.9, (0.01, 0.02)),
}
"""By precision: of weights alone (float16, int8_weights), or of the arithmetic, too."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A format, and what it can do.

    Attributes:
        module: with the functions of `Backend`.
        extra: of pyproject.toml, which installs what it needs.
        packages: what it imports, by the name of its distribution.
        suffix: of its files.
        precisions: of `BOUNDS`.
        convolved: whether matrix products are better written as convolutions.
        able: options that not every format can express.
    """

    module: str
    extra: str
    packages: Mapping[str, str]
    suffix: str
    precisions: tuple[str, ...] = ("float32",)
    convolved: bool = False
    able: tuple[str, ...] = ()


TARGETS = {
    "stablehlo": Target(
        "mobilevitv2_jax.export.stablehlo",
        "stablehlo",
        {"flatbuffers": "flatbuffers"},
        ".stablehlo",
        able=("--batch=any", "--any-size", "--vjp"),
    ),
    "onnx": Target(
        "mobilevitv2_jax.export.onnx",
        "onnx",
        {"onnx": "onnx", "onnxruntime": "onnxruntime"},
        ".onnx",
        convolved=True,
        able=("--batch=any",),
    ),
    "litert": Target(
        "mobilevitv2_jax.export.litert",
        "litert",
        {
            "litert-converter": "litert_converter",
            "ai-edge-litert": "ai_edge_litert",
            "ai-edge-quantizer": "ai_edge_quantizer",
        },
        ".tflite",
        ("float32", "float16", "dynamic_int8", "int8", "int8_weights"),
        convolved=True,
    ),
    "coreml": Target(
        "mobilevitv2_jax.export.coreml",
        "coreml",
        {"coremltools": "coremltools", "stablehlo-coreml": "stablehlo_coreml"},
        ".mlpackage",
        ("float32", "float16", "int8_weights"),
        convolved=True,
    ),
}
"""By the name that `--to` takes."""

OUTPUTS = {
    "classification": ("logits", "probabilities", "top_k"),
    "segmentation": ("logits", "classes"),
}
"""By task; the first is the default. "classes" is a map of the size of what comes in."""

ANY = "any"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for.

    Attributes:
        to: the format, one of `TARGETS`.
        precision: one of the format's.
        size: height and width that the model sees; those of its image processor by default.
        batch: images at a time; None for any number.
        any_size: take any height and width in multiples of 32.
        vjp: carry the derivative by the input.
        preprocess: take RGB in uint8, and scale and order it as the weights want it.
        from_size: height and width of pictures that are resized and cropped, too.
        output: one of `OUTPUTS`; None for the first.
        top_k: how many classes "top_k" names.
        images: pictures to compare on, and to calibrate with; None takes those of the run.
        examples: at most so many are compared.
        force: replace a file that exists.
    """

    to: str
    precision: str = "float32"
    size: tuple[int, int] | None = None
    batch: int | None = 1
    any_size: bool = False
    vjp: bool = False
    preprocess: bool = False
    from_size: tuple[int, int] | None = None
    output: str | None = None
    top_k: int = 5
    images: tuple[str, ...] | None = None
    examples: int = 1024
    force: bool = False

    @property
    def target(self) -> Target:
        """The format."""
        return TARGETS[self.to]


class Backend(Protocol):
    """The functions of a format's module."""

    resize: Resize
    """How maps are brought to the size of what comes in, in a form that the format likes."""

    def write(
        self,
        program: Program,
        precision: str,
        path: pathlib.Path,
        calibration: Callable[[], Iterable[np.ndarray]],
        card: Mapping[str, Any],
    ) -> None:
        """Writes an artefact.

        Args:
            program: the function, its weights and its shapes.
            precision: one of the format's.
            path: the file, or directory, to be made.
            calibration: returns representative inputs of the program, where precision needs them.
            card: what is to be known of the model, for formats that hold metadata.
        """

    def load(self, path: pathlib.Path, threads: int | None = None) -> Run | None:
        """Returns an artefact in its own runtime; None where this machine has none."""

    def operators(self, path: pathlib.Path) -> Counter[str]:
        """Returns how often each operator occurs in an artefact; "depthwise" counts apart."""

    def advice(self, path: pathlib.Path) -> list[str]:
        """Returns lines on what a delegate does not take, and how to measure on a device."""


def backend(to: str) -> Backend:
    """Returns the functions of a format.

    Raises:
        ConfigError: if a package that it needs is not installed.
    """
    target = TARGETS[to]
    missing = [
        name for name, module in target.packages.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise ConfigError(
            f'--to={to} needs {", ".join(missing)}: pip install "mobilevitv2-jax[{target.extra}]"'
        )
    return cast(Backend, importlib.import_module(target.module))


def check(options: Options) -> None:
    """Refuses what no model could be exported as.

    Raises:
        ConfigError: naming the option, what is allowed, and what it got.
    """
    _one_of("--to", options.to, TARGETS)
    target = options.target
    _one_of(f"--quantize for {options.to}", options.precision, target.precisions)
    for option, wanted in (
        ("--batch=any", options.batch is None),
        ("--any-size", options.any_size),
        ("--vjp", options.vjp),
    ):
        if wanted and option not in target.able:
            able = [name for name, other in TARGETS.items() if option in other.able]
            raise ConfigError(
                f"{option} is for {' and '.join(able)}: {options.to} cannot express it"
            )
    if options.any_size and options.from_size:
        raise ConfigError("--any-size and --from-size exclude each other: give one of them")
    if options.from_size and not options.preprocess:
        raise ConfigError("--from-size is part of preprocessing: give --preprocess, too")
    if options.vjp and options.preprocess:
        raise ConfigError("--vjp needs a continuous input: leave --preprocess away")
    outputs = dict.fromkeys(name for names in OUTPUTS.values() for name in names)
    if options.output is not None:
        _one_of("--output", options.output, outputs)
    for option, sizes in (("--size", options.size), ("--from-size", options.from_size)):
        if sizes is not None and min(sizes) < 1:
            raise ConfigError(f"{option} must be at least 1 pixel, got {sizes[0]}x{sizes[1]}")
    for option, count in (
        ("--batch", options.batch),
        ("--top-k", options.top_k),
        ("--examples", options.examples),
    ):
        if count is not None and count < 1:
            raise ConfigError(f"{option} must be at least 1, got {count}")


def _one_of(option: str, value: str, allowed: Iterable[str]) -> None:
    names = list(allowed)
    if value not in names:
        hint = nearest(value, names)
        raise ConfigError(f"{option} must be one of {', '.join(names)}, got {value!r}{hint}")
