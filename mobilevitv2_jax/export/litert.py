"""LiteRT (TensorFlow Lite), for Android, iOS and small computers; without TensorFlow.

The converter's entry points are private to it, hence its version is pinned to 0.5.
"""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax import export as jax_export
from jaxtyping import Array

from mobilevitv2_jax.export.interface import Outputs, Run
from mobilevitv2_jax.export.program import Program
from mobilevitv2_jax.models.resize import resize_in_run

SIGNATURE = "serving_default"
_KEPT = ("task", "input", "outputs", "preprocessor", "versions")


def resize(x: Array, size: tuple[int, ...]) -> Array:
    """Resizes maps: a composite that becomes one RESIZE_BILINEAR."""

    def decomposition(x: Array, **_: Any) -> Array:
        # Not by constant matrices: they would become operands of the composite.
        return resize_in_run(x, size, align_corners=False)

    composite = jax.lax.composite(decomposition, name="odml.upsample_bilinear2d")
    # Without one of these attributes, version 0.5 of the converter crashes.
    return composite(x, size=np.array(size, np.int64), align_corners=False, is_nchw_op=False)


def write(
    program: Program,
    precision: str,
    path: pathlib.Path,
    calibration: Callable[[], Iterable[np.ndarray]],
    card: Mapping[str, Any],
) -> None:
    """Writes a flatbuffer with a named signature, and labels and preprocessing at its end."""
    data = _flatbuffer(program)
    if precision != "float32":
        data = _quantized(data, precision, program.input, calibration)
    path.write_bytes(data)
    # As TensorFlow Lite's own metadata do: files in a ZIP behind the flatbuffer.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "".join(f"{label}\n" for label in card["labels"]))
        archive.writestr("model.json", json.dumps({name: card[name] for name in _KEPT}))


def _flatbuffer(program: Program) -> bytes:
    from litert_converter.mlir import ir, passmanager
    from litert_converter.mlir._mlir_libs import converter_api_ext as converter

    function = jax.jit(lambda images: program.run(program.weights, images))
    shape = jax.ShapeDtypeStruct(program.shape, program.dtype)
    text = jax_export.export(function, platforms=["cpu"])(shape).mlir_module()
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(text)
        names = [program.input], list(program.outputs)
        converter.set_signature(module.operation, SIGNATURE, *names)
        config = converter.ConvertToTFLConfig()
        converter.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
        return bytes(converter.export_flatbuffer_to_bytes(module.operation))


def _quantized(
    data: bytes,
    precision: str,
    name: str,
    calibration: Callable[[], Iterable[np.ndarray]],
) -> bytes:
    from ai_edge_quantizer import quantizer, recipe_manager

    manager = recipe_manager.RecipeManager()
    _RECIPES[precision](manager)
    engine = quantizer.Quantizer(data, manager.get_quantization_recipe())
    found = None
    if precision == "int8":
        found = engine.calibrate({SIGNATURE: [{name: x} for x in calibration()]}, num_threads=2)
    return bytes(engine.quantize(found, enable_progress_report=False).quantized_model)


def _float16(manager: Any) -> None:
    """Stores weights in float16."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=weights,
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    for operator in _WITH_WEIGHTS:
        manager.add_quantization_config(
            regex=".*",
            operation_name=qtyping.TFLOperationName(operator),
            op_config=config,
            algorithm_key=AlgorithmName.FLOAT_CASTING,
        )


def _int8_weights(manager: Any) -> None:
    for operator in _WITH_WEIGHTS:
        manager.add_weight_only_config(regex=".*", operation_name=operator, num_bits=8)


def _dynamic_int8(manager: Any) -> None:
    for operator in _WITH_WEIGHTS:
        manager.add_dynamic_config(regex=".*", operation_name=operator, num_bits=8)


def _int8(manager: Any) -> None:
    """Computes convolutions in int8, between float32.

    With normalisations and softmax in int8, too, a model lost 13 points of top-1.
    """
    for operator in _WITH_WEIGHTS:
        manager.add_static_config(
            regex=".*", operation_name=operator, activation_num_bits=8, weight_num_bits=8
        )


_RECIPES = {
    "float16": _float16,
    "int8_weights": _int8_weights,
    "dynamic_int8": _dynamic_int8,
    "int8": _int8,
}

_WITH_WEIGHTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Not BATCH_MATMUL, by which pictures are resized: the runtime refuses it with int8 weights."""


def load(path: pathlib.Path, threads: int | None = None) -> Run:
    """Returns the artefact in LiteRT's interpreter, on the CPU (XNNPACK)."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    runner = interpreter.get_signature_runner(SIGNATURE)
    (name,) = runner.get_input_details()
    outputs = json.loads(zipfile.ZipFile(path).read("model.json"))["outputs"]

    def run(images: np.ndarray) -> Outputs:
        found = runner(**{name: images})
        return tuple(found[output] for output in outputs)

    return run


def operators(path: pathlib.Path) -> Counter[str]:
    """Returns how often each operator occurs."""
    from litert_converter import schema_py_generated as schema

    names = {
        code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
    }
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    found = Counter(
        names[model.operatorCodes[operator.opcodeIndex].builtinCode]
        for graph in model.subgraphs
        for operator in graph.operators
    )
    found["depthwise"] = found["DEPTHWISE_CONV_2D"]
    return found


_XNNPACK = """
    ABS ADD AVERAGE_POOL_2D BATCH_MATMUL CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DIV EXP
    EXPAND_DIMS FULLY_CONNECTED GELU HARD_SWISH LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL NEG
    PAD QUANTIZE RELU RELU6 RESHAPE RESIZE_BILINEAR RSQRT SLICE SOFTMAX SPLIT SQRT SQUARE
    SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TRANSPOSE
"""
_GPU = """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXP FULLY_CONNECTED LOGISTIC MAXIMUM
    MAX_POOL_2D MEAN MINIMUM MUL PAD RELU RELU6 RESHAPE RESIZE_BILINEAR SOFTMAX STRIDED_SLICE SUB
"""


def advice(path: pathlib.Path) -> list[str]:
    """Returns what the delegates do not take, and the command for a device."""
    used = set(operators(path)) - {"depthwise"}
    lines = []
    for name, taken in (("XNNPACK", _XNNPACK), ("the GPU delegate", _GPU)):
        rest = ", ".join(sorted(used - set(taken.split()))) or "nothing"
        lines.append(f"operators that {name} is not known to take: {rest}")
    command = f"benchmark_model --graph=/data/local/tmp/{path.name} --num_threads=4"
    return [*lines, f"on a phone: adb shell /data/local/tmp/{command}, and with --use_gpu=true"]
