"""StableHLO: the program as JAX itself writes it, for servers with a CPU, a GPU or a TPU."""

from __future__ import annotations

import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from mobilevitv2_jax.export.interface import Outputs, Run
from mobilevitv2_jax.export.program import Program, resize_plain

PLATFORMS = ("cpu", "cuda", "tpu")

EXPIRY = (
    "StableHLO made with jax {version} is read by versions of jax up to six months newer and three "
    "weeks older: keep the weights, and export again for a later one"
)
"""Source: the compatibility guarantees of jax.export (docs.jax.dev, export/export.html)."""


resize = resize_plain


def write(
    program: Program,
    precision: str,
    path: pathlib.Path,
    calibration: Callable[[], Iterable[np.ndarray]],
    card: Mapping[str, Any],
) -> None:
    """Writes one file for all of `PLATFORMS`; the weights are in it."""
    names = ("batch", f"{program.multiple}*rows", f"{program.multiple}*columns")
    sides = [name if x is None else str(x) for name, x in zip(names, program.shape, strict=False)]
    shape = jax_export.symbolic_shape(f"{', '.join(sides)}, {program.shape[3]}")
    function = jax.jit(lambda images: program.run(program.weights, images))
    exported = jax_export.export(function, platforms=PLATFORMS)(
        jax.ShapeDtypeStruct(shape, program.dtype)
    )
    path.write_bytes(exported.serialize(vjp_order=int(program.derivative)))


def load(path: pathlib.Path, threads: int | None = None) -> Run:
    """Returns the artefact, compiled for the device that there is."""
    call = jax.jit(jax_export.deserialize(bytearray(path.read_bytes())).call)

    def run(images: np.ndarray) -> Outputs:
        return tuple(np.asarray(x) for x in call(images))

    return run


def operators(path: pathlib.Path) -> Counter[str]:
    """Returns how often each operator occurs."""
    text = jax_export.deserialize(bytearray(path.read_bytes())).mlir_module()
    found = Counter(re.findall(r"\bstablehlo\.(\w+)", text))
    groups = re.findall(r"feature_group_count = (\d+)", text)
    found["depthwise"] = sum(int(count) > 1 for count in groups)
    return found


def advice(path: pathlib.Path) -> list[str]:
    """Returns how long the file can be read."""
    return [EXPIRY.format(version=jax.__version__)]
