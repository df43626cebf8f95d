"""Core ML, for iOS 18 and later: converted on any machine, run on Apple's alone.

Not verified on a device: on Linux the operations of the saved program are evaluated by tests.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax import export as jax_export
from PIL import Image

from mobilevitv2_jax.export.interface import Outputs, Run
from mobilevitv2_jax.export.program import Program, resize_plain

resize = resize_plain

_KEPT = ("task", "outputs", "labels", "preprocessor", "versions")


def write(
    program: Program,
    precision: str,
    path: pathlib.Path,
    calibration: Callable[[], Iterable[np.ndarray]],
    card: Mapping[str, Any],
) -> None:
    """Writes an mlpackage; with preprocessing it takes an image, and names the class it finds."""
    import coremltools
    from stablehlo_coreml import build_pass_pipeline

    half, mil = precision == "float16", _mil(program)
    model = coremltools.convert(
        mil,
        source="milinternal",
        minimum_deployment_target=coremltools.target.iOS18,
        pass_pipeline=build_pass_pipeline(),
        compute_precision=getattr(coremltools.precision, "FLOAT16" if half else "FLOAT32"),
        skip_model_load=True,
        **_interface(program, next(iter(mil.functions["main"].inputs))),
    )
    if precision == "int8_weights":
        model = _int8_weights(model)
    spec = model.get_spec()
    if not spec.description.predictedFeatureName:  # a classifier's are classLabel and its _probs
        for old, new in zip(_names(spec.description.output), program.outputs, strict=True):
            coremltools.utils.rename_feature(spec, old, new)
    if program.input not in _names(spec.description.input):
        coremltools.utils.rename_feature(spec, spec.description.input[0].name, program.input)
    model = coremltools.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
    model.short_description = "MobileViTV2 in JAX. Not verified on a device."
    for name in _KEPT:
        model.user_defined_metadata[name] = json.dumps(card[name])
    model.save(str(path))


def _mil(program: Program) -> Any:
    import coremltools
    from jax._src.interpreters import mlir as jax_mlir  # the context that knows all dialects
    from jaxlib.mlir import ir
    from stablehlo_coreml import convert

    function = jax.jit(lambda images: program.run(program.weights, images))
    # Core ML hands an image over in numbers from 0 to 255, of floating point.
    shape = jax.ShapeDtypeStruct(program.shape, np.float32)
    text = jax_export.export(function, platforms=["cpu"])(shape).mlir_module()
    with jax_mlir.make_ir_context():
        return convert(ir.Module.parse(text), minimum_deployment_target=coremltools.target.iOS18)


def _interface(program: Program, name: str) -> dict[str, Any]:
    """Returns the arguments that make the input of this name an image, and the output a label."""
    import coremltools

    if program.dtype != "uint8":
        return {}
    image = coremltools.ImageType(
        name=name,
        shape=program.shape,
        color_layout=coremltools.colorlayout.RGB,
        channel_first=False,
    )
    if program.outputs != ("probabilities",):
        return {"inputs": [image]}
    labels = coremltools.ClassifierConfig(list(program.labels))
    return {"inputs": [image], "classifier_config": labels}


def _int8_weights(model: Any) -> Any:
    from coremltools.optimize import coreml

    settings = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8")
    return coreml.linear_quantize_weights(model, coreml.OptimizationConfig(global_config=settings))


def _names(features: Iterable[Any]) -> list[str]:
    return [feature.name for feature in features]


def load(path: pathlib.Path, threads: int | None = None) -> Run | None:
    """Returns the artefact in Core ML, on macOS; None elsewhere."""
    if sys.platform != "darwin":
        return None
    import coremltools

    model = coremltools.models.MLModel(str(path))
    spec = model.get_spec().description
    outputs, labels = (json.loads(model.user_defined_metadata[x]) for x in ("outputs", "labels"))
    name, scores = spec.input[0].name, spec.predictedProbabilitiesName
    takes_picture = spec.input[0].type.WhichOneof("Type") == "imageType"

    def run(images: np.ndarray) -> Outputs:
        found = model.predict({name: Image.fromarray(images[0]) if takes_picture else images})
        if scores:  # a classifier has them by label
            return (np.array([[found[scores][label] for label in labels]], np.float32),)
        return tuple(np.asarray(found[output]) for output in outputs)

    return run


def operators(path: pathlib.Path) -> Counter[str]:
    """Returns how often each operator occurs."""
    import coremltools

    spec = coremltools.utils.load_spec(str(path))
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    found = Counter(operation.type for operation in block.operations)
    groups = {
        operation.outputs[0].name: operation.attributes["val"].immediateValue.tensor.ints.values
        for operation in block.operations
        if operation.type == "const"
    }
    found["depthwise"] = sum(
        groups[operation.inputs["groups"].arguments[0].name][0] > 1
        for operation in block.operations
        if operation.type == "conv"
    )
    return found


def advice(path: pathlib.Path) -> list[str]:
    """Returns what is not known here, and how a Mac tells it."""
    return [
        "not verified on a device: this file has been converted, and not run by Core ML",
        f"open {path.name} in Xcode on a Mac, and in its tab Performance measure on a connected "
        "iPhone: it lists the operators that the Neural Engine does not take",
    ]
