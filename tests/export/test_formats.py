"""Every format computes what JAX computes, in its own runtime, on digits that no model has seen."""

import dataclasses
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from fitted import fitted

import mobilevitv2_jax as mv
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.export import artefact, bench, examples, interface, proof
from mobilevitv2_jax.export.fold import depthwise_layers
from mobilevitv2_jax.export.interface import Options
from mobilevitv2_jax.export.program import Program, make_program, resize_plain
from mobilevitv2_jax.models.config import ACTIVATIONS
from mobilevitv2_jax.models.layers import activation

pytestmark = pytest.mark.export

PROMISED = [
    ("stablehlo", "float32"),
    ("onnx", "float32"),
    ("litert", "float32"),
    ("litert", "float16"),
    ("litert", "int8"),
    ("coreml", "float32"),
]
MORE = [
    ("litert", "dynamic_int8"),
    ("litert", "int8_weights"),
    ("coreml", "float16"),
    ("coreml", "int8_weights"),
]
# What fits a model is kept in its process: `--dist loadgroup` has one process for each task.
GROUPS = {task: pytest.mark.xdist_group(task) for task in ("classification", "segmentation")}
MODELS = [
    pytest.param(task, width, marks=group)
    for task, group in GROUPS.items()
    for width in (0.5, 1.0, 2.0)
]
# Nine shifts would be nine slices of a padded map in every depthwise layer; patches that are cut
# out one by one would be gathers, or windows.
UNWANTED = {
    "stablehlo": ("gather", "pad", "reduce_window", "scatter"),
    "onnx": ("Gather", "GatherND", "Slice", "Pad", "Col2Im", "BatchNormalization"),
    "litert": ("GATHER", "GATHER_ND", "STRIDED_SLICE", "SELECT_V2", "STABLEHLO_COMPOSITE"),
    "coreml": ("gather", "gather_nd", "sliding_windows", "batch_norm", "pad"),
}
# Held-out accuracy below which agreement with JAX would mean little.
LEAST = {"classification": 0.8, "segmentation": 0.15}


@pytest.mark.parametrize(("task", "width"), MODELS)
def test_every_artefact_of_a_model_computes_what_jax_does(task, width, tmp_path):
    subject = fitted(task, width, tmp_path)
    whole, part = {"classification": 360, "segmentation": 240}[task], 64
    for to, precision in PROMISED + (MORE if width == 0.5 else []):
        count = whole if "int8" in precision else part
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
        if to == "coreml":
            assert "not verified on a device" in report.rows["check"]
            check_simulated(subject, out, options)
            continue
        check = report.rows["check"]
        assert float(check.split("JAX ")[1].split("%")[0]) / 100 >= LEAST[task], check
        assert check.startswith(f"{count} of digit"), check


def check_simulated(subject, package, options):
    """Evaluates the operations of a Core ML package beside JAX, for want of a device."""
    from mil import program_of

    options = dataclasses.replace(options, examples=64)
    reference = make_program(subject.model, subject.processor, options, resize_plain)
    pictures = examples.held_out(subject.run, subject.processor, options)
    inputs = examples.scaled(subject.processor, pictures.pictures)
    found = proof.compare(program_of(package), reference, pictures, inputs)
    proof.check(found, options.precision)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return fitted("classification", 0.5, tmp_path_factory.mktemp("small"))


ALONE = """
import sys
for name in ("flax", "mobilevitv2_jax"):
    sys.modules[name] = None  # importing it fails
import jax, numpy as np
from jax import export
artefact = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert artefact.platforms == ("cpu", "cuda", "tpu")
for shape in ((1, 64, 64, 3), (2, 96, 64, 3)):
    pixels = np.full(shape, 0.5, np.float32)
    (logits,) = artefact.call(pixels)
    assert logits.shape == (shape[0], 10)
    (gradient,) = artefact.vjp().call(pixels, logits)
    assert gradient.shape == shape and np.abs(gradient).max() > 0
"""


@GROUPS["classification"]
@pytest.mark.parametrize("batch", [1, 4])
def test_any_size_goes_with_a_fixed_batch(small, tmp_path, batch):
    options = Options(to="stablehlo", batch=batch, any_size=True, examples=6)
    artefact.export_subject(small, tmp_path / "x.stablehlo", options)
    shape = artefact.read_card(tmp_path / "x.stablehlo")["input"]["shape"]
    assert shape == [batch, "any", "any", 3]


@GROUPS["classification"]
def test_stablehlo_of_any_batch_and_size_runs_without_flax_and_this_package(small, tmp_path):
    options = Options(to="stablehlo", batch=None, any_size=True, vjp=True, examples=8)
    artefact.export_subject(small, tmp_path / "x.stablehlo", options)
    command = [sys.executable, "-c", ALONE, str(tmp_path / "x.stablehlo")]
    subprocess.run(command, check=True, cwd=tmp_path)
    card = artefact.read_card(tmp_path / "x.stablehlo")
    assert card["input"]["shape"] == ["any", "any", "any", 3] and card["input"]["multiple"] == 32
    assert card["labels"][:2] == ["0", "1"] and card["versions"]["jax"]
    assert card["preprocessor"]["size"] == {"shortest_edge": 32}


@GROUPS["classification"]
@pytest.mark.parametrize("to", ["stablehlo", "onnx", "litert"])
def test_a_camera_s_pixels_go_in_and_labels_come_out(small, tmp_path, to):
    out = tmp_path / f"x{interface.TARGETS[to].suffix}"
    options = Options(
        to=to, preprocess=True, from_size=(48, 64), output="top_k", top_k=3, examples=64
    )
    report = artefact.export_subject(small, out, options)
    assert report.rows["takes"] == "pixels [1, 48, 64, 3] uint8"
    probabilities, classes = interface.backend(to).load(out)(np.zeros((1, 48, 64, 3), np.uint8))
    assert probabilities.shape == classes.shape == (1, 3)


@GROUPS["classification"]
def test_core_ml_takes_an_image_and_names_the_class(small, tmp_path):
    import coremltools

    options = Options(to="coreml", preprocess=True, output="probabilities", examples=8)
    report = artefact.export_subject(small, tmp_path / "x.mlpackage", options)
    assert "not verified on a device" in report.rows["check"]
    spec = coremltools.utils.load_spec(str(tmp_path / "x.mlpackage"))
    (image,) = spec.description.input
    assert (image.type.imageType.width, image.type.imageType.height) == (32, 32)
    assert image.type.imageType.ColorSpace.Name(image.type.imageType.colorSpace) == "RGB"
    assert spec.description.predictedFeatureName == "classLabel"
    kept = spec.description.metadata.userDefined
    assert json.loads(kept["labels"]) == [str(digit) for digit in range(10)]
    assert "Not verified on a device" in spec.description.metadata.shortDescription
    assert spec.specificationVersion >= 9  # iOS 18


@GROUPS["classification"]
def test_core_ml_on_a_mac_is_given_a_picture_and_its_labels_are_put_in_order(monkeypatch):
    """A stand-in for Core ML's runtime, which takes no arrays for images."""
    import coremltools
    from PIL import Image

    class Model:
        user_defined_metadata = {"outputs": '["probabilities"]', "labels": '["b", "a"]'}

        def __init__(self, path):
            pass

        def get_spec(self):
            spec = coremltools.proto.Model_pb2.Model()
            feature = spec.description.input.add(name="pixels")
            feature.type.imageType.width = 8
            spec.description.predictedProbabilitiesName = "classLabel_probs"
            return spec

        def predict(self, given):
            assert isinstance(given["pixels"], Image.Image)
            return {"classLabel": "b", "classLabel_probs": {"a": 0.25, "b": 0.75}}

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(coremltools.models, "MLModel", Model)
    (found,) = interface.backend("coreml").load("x")(np.zeros((1, 8, 8, 3), np.uint8))
    np.testing.assert_array_equal(found, [[0.75, 0.25]])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_has_a_form_in_onnx(name):
    import onnxruntime

    from mobilevitv2_jax.export.onnx_graph import model_of

    act = activation(mv.MobileViTV2Config(hidden_act=name))
    program = Program(
        lambda weights, x: (act(x),), {}, "x", (1, 2, 8, 3), "float32", ("y",), (), False, 32
    )
    session = onnxruntime.InferenceSession(model_of(program).SerializeToString())
    x = np.linspace(-4, 4, 48, dtype=np.float32).reshape(1, 2, 8, 3)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], act(x), rtol=0, atol=1e-6)


@GROUPS["classification"]
def test_labels_and_preprocessing_are_in_the_metadata(small, tmp_path):
    import onnx

    for to, name in (("onnx", "x.onnx"), ("litert", "x.tflite")):
        artefact.export_subject(small, tmp_path / name, Options(to=to, examples=8))
    model = onnx.load(str(tmp_path / "x.onnx"))
    onnx.checker.check_model(model, full_check=True)
    kept = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert kept["labels"] == [str(digit) for digit in range(10)]
    assert kept["preprocessor"]["do_flip_channel_order"] is False
    assert model.opset_import[0].version >= 18
    with zipfile.ZipFile(tmp_path / "x.tflite") as archive:
        assert archive.read("labels.txt").decode().split() == kept["labels"]
        assert json.loads(archive.read("model.json"))["preprocessor"] == kept["preprocessor"]


@GROUPS["classification"]
def test_int8_without_a_run_asks_for_representative_pictures(small, tmp_path):
    stranger = dataclasses.replace(small, run=None)
    options = Options(to="litert", precision="int8")
    with pytest.raises(ConfigError, match="name representative pictures with --images"):
        artefact.export_subject(stranger, tmp_path / "x.tflite", options)
    assert not [path for path in tmp_path.iterdir() if "x.tflite" in path.name]


@GROUPS["classification"]
def test_bench_tells_size_accuracy_and_latency_of_each_file(small, tmp_path, monkeypatch):
    names = ("x.onnx", "x.tflite")
    for to, name in zip(("onnx", "litert"), names, strict=True):
        artefact.export_subject(small, tmp_path / name, Options(to=to, examples=16))
    paths = [str(tmp_path / name) for name in names]
    monkeypatch.setattr(artefact, "read", lambda *_, **__: (small, []))
    # A process of its own would not know the model, which no directory holds.
    monkeypatch.setattr(bench, "in_own_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(bench.os, "sched_setaffinity", lambda *_: None)
    told = []
    text = bench.table(paths, "weights", rounds=2, tell=told.append)
    assert "x.tflite" in told[1] and told[2].startswith("2 rounds on 1 of")
    rows = {line.split("\u2502")[1].strip(): line for line in text.splitlines() if "\u2502" in line}
    assert set(rows) == {*names, "jax.jit"}
    for name in names:
        assert "top-1" in rows[name] and f"{(tmp_path / name).stat().st_size:,}" in rows[name]

    # Weights that are not of a run are shown tiles of photographs, as many as the artefact takes.
    stranger = dataclasses.replace(small, run=None)
    monkeypatch.setattr(artefact, "read", lambda *_, **__: (stranger, []))
    artefact.export_subject(small, tmp_path / "four.onnx", Options(to="onnx", batch=4, examples=8))
    assert set(bench.latencies([paths[0], str(tmp_path / "four.onnx")], "weights", 1, 1)) == {
        paths[0],
        str(tmp_path / "four.onnx"),
        "jax.jit",
    }
