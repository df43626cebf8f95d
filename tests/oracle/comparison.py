"""Runs a peer and our model on the same images with the same weights, and measures the difference.

An error is the largest absolute difference over the largest absolute reference value.
"""

from __future__ import annotations

import importlib
from typing import Any

import jax
import numpy as np
import pytest
from oracle.cases import RULES, Case
from reference_torch import (
    REQUIRED,
    channels_first,
    channels_last,
    huggingface,
    torch,
)
from reference_weights import LABELS, reference_images, reference_weights, shapes_of

import mobilevitv2_jax as mv
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.models.initializers import Blank

timm = importlib.import_module("timm") if REQUIRED else pytest.importorskip("timm")

KINDS = {"classification": "ForImageClassification", "segmentation": "ForSemanticSegmentation"}


def error(ours: Any, reference: Any) -> float:
    """Returns the largest absolute difference over the largest absolute reference value."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def our_model(task: str, **fields: Any) -> Any:
    """Returns our model, in evaluation mode, with the reference weights."""
    model = getattr(mv, f"MobileViTV2{KINDS[task]}")(mv.MobileViTV2Config(**fields), rngs=Blank())
    shapes = shapes_of(mv.weights.state_dict(model))
    mv.weights.load_state_dict(model, reference_weights(shapes))
    model.eval()
    return model


def timm_model(width: float, stride: int = 32, labels: int = LABELS, **options: Any) -> Any:
    """Returns timm's classifier, in evaluation mode, with the reference weights."""
    ours = our_model("classification", width_multiplier=width, num_labels=labels)
    theirs = timm.create_model(
        f"mobilevitv2_{round(100 * width):03d}",
        num_classes=labels,
        output_stride=stride,
        **options,
    )
    arrays = mv.weights.state_dict(ours, "timm")
    theirs.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    return theirs.eval()


def stage_outputs(model: Any, pixels: Any) -> tuple[Any, list[Any]]:
    """Returns the logits of timm's classifier and the outputs of its five stages."""
    maps: list[Any] = []
    hooks = [
        stage.register_forward_hook(lambda module, inputs, output: maps.append(output))
        for stage in model.stages
    ]
    logits = model(pixels)
    for hook in hooks:
        hook.remove()
    return logits, maps


def as_arrays(logits: Any, maps: Any) -> dict[str, np.ndarray]:
    """Returns a peer's outputs by name, channels last."""
    kept = {"logits": logits.numpy() if logits.ndim == 2 else channels_last(logits)}
    return kept | {f"stage {stage}": channels_last(x) for stage, x in enumerate(maps, start=1)}


@torch.no_grad()
def reference_outputs(case: Case, double: bool = False) -> dict[str, np.ndarray]:
    """Returns the peer's logits and feature maps, channels last."""
    dtype = torch.float64 if double else torch.float32
    pixels = channels_first(reference_images(case.size)).to(dtype)
    if case.peer == "huggingface":
        model = huggingface(KINDS[case.task], **case.fields).to(dtype)
        output = model(pixels, output_hidden_states=True)
        return as_arrays(output.logits, output.hidden_states)
    logits, maps = stage_outputs(timm_model(case.width, case.stride).to(dtype), pixels)
    if case.task == "segmentation":
        segmenter = huggingface(KINDS[case.task], **case.fields).to(dtype)
        logits = segmenter.segmentation_head(maps)
    return as_arrays(logits, maps)


def compiled(model: Any, **options: Any) -> Any:
    """Returns our model's forward pass under jit, as it is meant to be used."""
    graphs, parameters, statistics = functional.split(model)

    @jax.jit
    def forward(parameters: Any, statistics: Any, pixels: Any) -> Any:
        return functional.merge(graphs.evaluation, parameters, statistics)(pixels, **options)

    def call(pixels: np.ndarray) -> Any:
        with jax.default_matmul_precision("highest"):
            return forward(parameters, statistics, pixels)

    return call


def our_outputs(case: Case, double: bool = False) -> dict[str, np.ndarray]:
    """Returns our logits and feature maps under the rules of the case's peer."""
    types = {"dtype": "float64", "param_dtype": "float64"} if double else {}
    model = our_model(case.task, **case.fields, **RULES[case.peer], **types)
    images = reference_images(case.size).astype(np.float64 if double else np.float32)
    output = compiled(model, output_hidden_states=True)(images)
    maps = {f"stage {stage}": x for stage, x in enumerate(output.hidden_states, start=1)}
    return {name: np.asarray(x) for name, x in {"logits": output.logits, **maps}.items()}


def errors(case: Case, double: bool = False) -> dict[str, float]:
    """Returns the relative error of the logits and of each feature map."""
    ours, reference = our_outputs(case, double), reference_outputs(case, double)
    assert ours.keys() == reference.keys()
    wanted = np.float64 if double else np.float32
    assert {x.dtype for x in (*ours.values(), *reference.values())} == {np.dtype(wanted)}
    return {name: error(ours[name], reference[name]) for name in reference}
