"""Every format computes what JAX computes, in its own runtime, on digits that no model has seen."""

import pytest
from fitted import fitted

from mobilevitv2_jax.export import artefact, interface
from mobilevitv2_jax.export.fold import depthwise_layers
from mobilevitv2_jax.export.interface import Options

pytestmark = pytest.mark.export

FORMATS = [
    ("stablehlo", "float32"),
    ("onnx", "float32"),
    ("litert", "float32"),
    ("litert", "float16"),
    ("litert", "dynamic_int8"),
    ("litert", "int8_weights"),
    ("litert", "int8"),
]
# Nine shifts would be nine slices of a padded map in every depthwise layer; patches that are cut
# out one by one would be gathers, or windows.
UNWANTED = {
    "stablehlo": ("gather", "pad", "reduce_window", "scatter"),
    "onnx": ("Gather", "GatherND", "Slice", "Pad", "Col2Im", "BatchNormalization"),
    "litert": ("GATHER", "GATHER_ND", "STRIDED_SLICE", "SELECT_V2", "STABLEHLO_COMPOSITE"),
}
# Held-out accuracy below which agreement with JAX would mean little.
LEAST = 0.8


def test_every_artefact_of_a_classifier_computes_what_jax_does(tmp_path):
    subject = fitted(tmp_path)
    for to, precision in FORMATS:
        # The accuracy that int8 may cost is that on all held-out digits.
        count = 360 if "int8" in precision else 64
        batch = None if to == "onnx" else 1
        options = Options(to=to, precision=precision, batch=batch, examples=count)
        out = tmp_path / f"{precision}{options.target.suffix}"
        # It fails above the bounds of `interface.BOUNDS`, which are those that are promised.
        report = artefact.export_subject(subject, out, options)
        found = interface.backend(to).operators(out)
        # JAX writes a convolution for each of the platforms where their forms differ.
        copies = 3 if to == "stablehlo" and found["case"] else 1
        assert found["depthwise"] == copies * depthwise_layers(subject.model), to
        assert not [name for name in UNWANTED[to] if found[name]], to
        check = report.rows["check"]
        assert float(check.split("JAX ")[1].split("%")[0]) / 100 >= LEAST, check
        assert check.startswith(f"{count} of digit"), check
