"""An artefact takes its place when it is proved equal, and leaves nothing behind otherwise."""

import dataclasses
import json

import numpy as np
import pytest

import mobilevitv2_jax as mv
from mobilevitv2_jax.errors import ConfigError, ExportError
from mobilevitv2_jax.export import artefact, examples, interface, proof
from mobilevitv2_jax.export.interface import Bound, Options
from mobilevitv2_jax.export.program import Program

KERNEL = np.float32([[1, 0], [0, 1], [-1, -1]])
PICTURES = np.random.RandomState(0).randint(0, 256, (10, 8, 8, 3), np.uint8)
LABELS = np.argmax(PICTURES.astype(np.float32).mean((1, 2)) @ KERNEL, -1)


def linear(batch=1, outputs=("logits",)):
    """Returns a program that is a product of mean colours."""
    return Program(
        lambda weights, x: (x.mean((1, 2)) @ weights["kernel"],),
        {"kernel": KERNEL},
        "pixel_values",
        (batch, 8, 8, 3),
        "float32",
        outputs,
        ("a", "b"),
    )


class Backend:
    """A format that writes a kernel, which is off by an error."""

    resize = None

    def __init__(self, error=0.0):
        self.error = error

    def write(self, program, precision, path, calibration, card):
        path.write_bytes((program.weights["kernel"] + np.float32(self.error)).tobytes())
        if np.isnan(self.error):
            raise RuntimeError("the converter has crashed")

    def load(self, path, threads=None):
        kernel = np.frombuffer(path.read_bytes(), np.float32).reshape(3, 2)
        return lambda x: (x.mean((1, 2)) @ kernel,)

    def advice(self, path):
        return ["run it"]


@dataclasses.dataclass(frozen=True)
class Subject:
    model = mv.MobileViTV2Config(num_labels=2)
    processor = mv.MobileViTImageProcessor(do_flip_channel_order=False)
    run = None
    where = "somewhere"
    task = "classification"
    weights = {"checkpoint": 7, "average": False}

    def __post_init__(self):
        object.__setattr__(self.model, "config", self.model)


@pytest.fixture
def export(monkeypatch, tmp_path):
    """Returns a function that exports through a backend with an error."""

    def export(error=0.0, **options):
        monkeypatch.setattr(artefact, "backend", lambda to: Backend(error))
        monkeypatch.setattr(artefact, "read", lambda *_: (Subject(), ["read"]))
        monkeypatch.setattr(artefact, "lean", lambda model, convolved: model)
        monkeypatch.setattr(artefact, "make_program", lambda *_: linear())
        found = examples.Examples("noise", PICTURES, LABELS)
        monkeypatch.setattr(examples, "held_out", lambda *_: found)
        monkeypatch.setattr(artefact, "_versions", lambda options: {"jax": "1"})
        asked = Options(to="stablehlo", **options)
        return artefact.export("weights", tmp_path / "x.stablehlo", asked)

    return export


def test_an_artefact_is_written_with_its_card(export, tmp_path):
    report = export()
    assert report.notes == ["read", "run it"]
    assert "10 of noise" in report.rows["check"] and "top-1 100.00%" in report.rows["check"]
    assert {path.name for path in tmp_path.iterdir()} == {"x.stablehlo", "x.stablehlo.json"}
    card = artefact.read_card(tmp_path / "x.stablehlo")
    assert card["labels"] == ["a", "b"] and card["input"]["shape"] == [1, 8, 8, 3]
    assert card["preprocessor"]["rescale_factor"] == 1 / 255
    assert card["weights"] == {"checkpoint": 7, "average": False}  # `bench` reads them again
    assert json.loads((tmp_path / "x.stablehlo.json").read_text()) == card


@pytest.mark.parametrize(("error", "kind"), [(1e-2, ExportError), (np.nan, RuntimeError)])
def test_a_failed_export_leaves_no_file(export, tmp_path, error, kind):
    with pytest.raises(kind):
        export(error)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_by_force(export, tmp_path):
    (tmp_path / "x.stablehlo").write_text("mine")
    with pytest.raises(ConfigError, match="give --force to replace it"):
        export()
    with pytest.raises(ExportError):
        export(1.0, force=True)
    assert (tmp_path / "x.stablehlo").read_text() == "mine"
    export(force=True)
    assert artefact.read_card(tmp_path / "x.stablehlo")["to"] == "stablehlo"


def test_a_missing_extra_says_what_to_install(monkeypatch):
    target = dataclasses.replace(interface.TARGETS["stablehlo"], packages={"absent": "absent_"})
    monkeypatch.setitem(interface.TARGETS, "stablehlo", target)
    with pytest.raises(ConfigError, match=r'absent: pip install "mobilevitv2-jax\[stablehlo\]"'):
        interface.backend("stablehlo")


def test_a_name_or_place_that_cannot_be_is_refused(tmp_path):
    for name, words in (("x.onnx", "must end with .stablehlo"), ("no/x.stablehlo", "make it")):
        with pytest.raises(ConfigError, match=words):
            artefact._place(tmp_path / name, Options(to="stablehlo"))


# ---- The comparison --------------------------------------------------------------------------


def compared(kernel, precision="float32", program=None):
    """Compares a kernel with `KERNEL`, and checks what was found."""
    found = proof.compare(
        lambda x: (x.mean((1, 2)) @ kernel,),
        program or linear(),
        examples.Examples("noise", PICTURES, LABELS),
        PICTURES.astype(np.float32),
    )
    proof.check(found, precision)
    return found


@pytest.mark.parametrize("batch", [1, 4, None])
def test_an_equal_artefact_passes_in_batches_of_any_length(batch):
    found = compared(KERNEL, program=linear(batch))
    assert found.difference <= 1e-6 and found.agreement == 1 and found.accuracy == (1, 1)


def test_rounding_passes_where_it_is_allowed():
    rounded = KERNEL + np.float32(3e-4)
    assert 1e-4 < compared(rounded, "float16").difference < 1e-2
    with pytest.raises(ExportError, match="1e-04 is allowed for float32"):
        compared(rounded)


def test_an_artefact_that_finds_other_classes_is_refused():
    with pytest.raises(ExportError, match="the class that JAX gives, and 90% is the least"):
        compared(KERNEL[:, ::-1], "int8")


def test_an_artefact_that_loses_accuracy_is_refused(monkeypatch):
    monkeypatch.setitem(proof.BOUNDS, "int8", Bound(None, 0.0, (0.01, 0.02)))
    with pytest.raises(ExportError, match=r"of top-1, and 1% is allowed for int8"):
        compared(KERNEL[:, ::-1], "int8")


def test_maps_are_judged_by_their_mean_iou_without_what_is_void():
    labels = np.uint8([[[0, 0, 1], [1, 255, 255]]])
    found = np.int32([[[0, 1, 1], [1, 7, 7]]])
    # Of class 0 one of two pixels; of class 1 two, and one that is not its own.
    assert proof._miou(found, labels) == pytest.approx((1 / 2 + 2 / 3) / 2)
