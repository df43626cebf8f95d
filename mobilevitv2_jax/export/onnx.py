"""ONNX, for ONNX Runtime and what else reads it; batches of any length."""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mobilevitv2_jax.export.interface import Outputs, Run
from mobilevitv2_jax.export.onnx_graph import model_of
from mobilevitv2_jax.export.onnx_graph import resize as resize
from mobilevitv2_jax.export.program import Program

_KEPT = ("task", "input", "outputs", "labels", "preprocessor", "versions")


def write(
    program: Program,
    precision: str,
    path: pathlib.Path,
    calibration: Callable[[], Iterable[np.ndarray]],
    card: Mapping[str, Any],
) -> None:
    """Writes a model that passes the full check, with labels and preprocessing in its metadata."""
    from onnx import helper

    model = model_of(program)
    helper.set_model_props(model, {name: json.dumps(card[name]) for name in _KEPT})
    path.write_bytes(model.SerializeToString())


def load(path: pathlib.Path, threads: int | None = None) -> Run:
    """Returns the artefact in ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> Outputs:
        return tuple(session.run(None, {name: images}))

    return run


def operators(path: pathlib.Path) -> Counter[str]:
    """Returns how often each operator occurs."""
    import onnx

    nodes = onnx.load(str(path)).graph.node
    found = Counter(node.op_type for node in nodes)
    found["depthwise"] = sum(
        attribute.name == "group" and attribute.i > 1
        for node in nodes
        if node.op_type == "Conv"
        for attribute in node.attribute
    )
    return found


_XNNPACK = "Conv MatMul Softmax Resize AveragePool MaxPool ConvTranspose"
"""Source: onnxruntime `docs/execution-providers/Xnnpack-ExecutionProvider.md`."""


def advice(path: pathlib.Path) -> list[str]:
    """Returns what ONNX Runtime's XNNPACK does not take, and the command for a device."""
    rest = sorted(set(operators(path)) - {"depthwise", *_XNNPACK.split()})
    return [
        f"ONNX Runtime's XNNPACK takes {', '.join(_XNNPACK.split()[:4])}, and leaves to the CPU "
        f"provider: {', '.join(rest)}",
        f"on a device: onnxruntime_perf_test -e xnnpack -x 2 -r 50 {path.name}",
    ]
