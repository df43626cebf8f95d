"""Our model against stored outputs of Hugging Face's and timm's: see `golden/make_golden.py`.

Tolerance: 1e-5 of the largest absolute reference value. Float32 rounding alone moves Hugging
Face's own outputs by 5e-7 to 1e-6 against float64, and ours are summed in another order.
"""

import functools
import pathlib

import jax
import numpy as np
import pytest
from oracle.cases import GOLDEN as CONVENTIONS
from oracle.cases import RULES
from reference_weights import (
    LABELS,
    SIZES,
    WIDTHS,
    digest,
    reference_images,
    reference_labels,
    reference_weights,
    shapes_of,
)

import mobilevitv2_jax as mv
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.models.losses import classification_loss

TOLERANCE = 1e-5
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "huggingface.npz"
QUICK = (0.5,)
"""Widths of the default tests; the others are slow tests."""
ALTERNATING = [
    pytest.param(width, SIZES[index % 2], marks=() if width in QUICK else pytest.mark.slow)
    for index, width in enumerate(WIDTHS)
]
OTHERS = [(width, SIZES[1 - index % 2]) for index, width in enumerate(WIDTHS)]


@functools.cache
def golden(file: pathlib.Path = GOLDEN) -> dict[str, np.ndarray]:
    return dict(np.load(file))


def run(kind: type, size: tuple[int, int], **fields):
    """Returns our model's output, under jit, with the reference weights."""
    model = kind(mv.MobileViTV2Config(**fields), rngs=Blank())
    mv.weights.load_state_dict(model, reference_weights(shapes_of(mv.weights.state_dict(model))))
    graphs, parameters, statistics = functional.split(model)

    @jax.jit
    def forward(parameters, statistics, pixels):
        model = functional.merge(graphs.evaluation, parameters, statistics)
        return model(pixels, output_hidden_states=True)

    with jax.default_matmul_precision("highest"):
        return forward(parameters, statistics, reference_images(size))


def compare(output, losses: dict, prefix: str, file: pathlib.Path = GOLDEN) -> None:
    """Compares everything the golden file holds under a prefix."""
    maps = [np.asarray(x) for x in output.hidden_states]
    pooled = maps[-1].mean((1, 2), dtype=np.float64)
    ours = digest(np.asarray(output.logits), pooled, losses, maps)
    stored = golden(file)
    theirs = {key.removeprefix(prefix): stored[key] for key in stored if key.startswith(prefix)}
    assert ours.keys() == theirs.keys()
    for key, reference in theirs.items():
        assert ours[key].shape == reference.shape, key
        stage, _, part = key.partition("/")
        scale = theirs[f"{stage}/largest"] if part == "samples" else np.abs(reference).max()
        error = np.abs(ours[key] - reference).max() / scale
        assert error <= TOLERANCE, f"{key}: relative error {error:.1e}"


def check(width: float, size: tuple[int, int], labels: int = LABELS) -> None:
    """Compares the classifier with Hugging Face's at one width and size."""
    fields = {"width_multiplier": width, "num_labels": labels}
    output = run(mv.MobileViTV2ForImageClassification, size, **fields)
    losses = {
        problem_type: classification_loss(output.logits, targets, problem_type)
        for problem_type, targets in reference_labels(labels).items()
    }
    compare(output, losses, f"{width}/{labels}/{size[0]}x{size[1]}/")


@pytest.mark.parametrize(("width", "size"), ALTERNATING)
def test_every_width_agrees_with_hugging_face(width, size):
    check(width, size)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "size"), OTHERS)
def test_every_width_agrees_with_hugging_face_at_the_other_size(width, size):
    check(width, size)


@pytest.mark.slow
def test_a_thousand_classes_agree_with_hugging_face():
    check(1.0, SIZES[0], labels=1000)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow if case.peer == "timm" else ())
        for case in CONVENTIONS
    ],
    ids=lambda case: case.name,
)
def test_the_rules_of_each_peer_give_its_outputs(case):
    """Hugging Face's segmenter at output stride 16, and timm on maps that the patch divides not."""
    segmentation = case.task == "segmentation"
    kind = (
        mv.MobileViTV2ForSemanticSegmentation
        if segmentation
        else mv.MobileViTV2ForImageClassification
    )
    output = run(kind, case.size, **case.fields, **RULES[case.peer])
    compare(output, {}, f"{case.name}/", GOLDEN.with_name("conventions.npz"))


def test_the_golden_files_stay_small():
    assert sum(file.stat().st_size for file in GOLDEN.parent.iterdir()) < 1e6
