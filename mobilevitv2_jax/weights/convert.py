"""From one project's weights to another's, compared before they are handed over."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from sklearn.datasets import load_sample_images

from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.processing import MobileViTImageProcessor
from mobilevitv2_jax.weights import formats, names, pretrained, saving
from mobilevitv2_jax.weights.checkpoint import write_tree

TARGETS = (*saving.FORMATS, "orbax")

_TOLERANCE = 1e-4
"""Of the largest logit: float32 programs that differ in the order of their sums."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion, or an export, did.

    Attributes:
        rows: what was read and written, by name.
        notes: what was changed, left out, or is to be known; a sentence each.
    """

    rows: dict[str, str]
    notes: list[str]


def convert(
    source: epath.PathLike,
    destination: epath.PathLike,
    to: str,
    *,
    checkpoint: str | int = "latest",
    average: bool = True,
) -> Report:
    """Writes weights in another form, if the model computes the same there.

    The outputs of both sides, each under its own project's rules and image processor, are compared
    on two photographs. For "orbax" parameters and statistics are written as they are, by our paths.

    Args:
        source: whatever `from_pretrained` reads.
        destination: a directory that does not exist, or is empty.
        to: one of `TARGETS`.
        checkpoint: of a run directory: "latest", "best", or a step.
        average: of a run directory: the moving average of the weights, not the weights.

    Raises:
        WeightsError: if the source cannot be read, or the target cannot express the model or a
            rule of its images: nothing is left at the destination then.
    """
    if to not in TARGETS:
        raise WeightsError(f"--to must be one of {', '.join(TARGETS)}, got {to!r}")
    place = epath.Path(destination)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise WeightsError(f"{place} exists: choose another destination")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = pretrained.load(source, checkpoint=checkpoint, average=average)
    notes = [str(warning.message) for warning in caught]
    stored = found.stored
    if stored.assumed_images:
        notes.append(stored.assumed_images)
    processor = MobileViTImageProcessor.from_dict(stored.preprocessor)
    rows = {
        "read": f"{stored.where} ({stored.source}, {len(stored.arrays)} arrays)",
        "model": f"{type(found.model).__name__}, width {found.model.config.width_multiplier:g}, "
        f"{found.model.config.num_labels} classes",
        "written": f"{place} ({to})",
    }
    try:
        if to == "orbax":
            _write_tree(place, found.model, processor)
        else:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                notes += saving.save_pretrained(found.model, place, to, processor)
            differences = [str(warning.message) for warning in caught]
            rows["check"] = _check(found, processor, place, to, differences)
            notes += differences
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return Report(rows, notes)


def _write_tree(place: epath.Path, model: Any, processor: MobileViTImageProcessor) -> None:
    parameters, statistics = functional.arrays(model)
    write_tree(place / "weights", {"parameters": parameters, "statistics": statistics})
    model.config.save_pretrained(place)
    processor.save_pretrained(place)


def _check(
    found: pretrained.Pretrained,
    processor: MobileViTImageProcessor,
    place: epath.Path,
    to: str,
    differences: list[str],
) -> str:
    """Compares the outputs of both sides, each through its own rules and processor."""
    written = formats.read(place)
    config = written.config.replace(**saving.rules_of(to))
    theirs = pretrained.place(written, type(found.model), config)
    if theirs.new or theirs.dropped:
        raise WeightsError(f"what was written lacks {names.listed('arrays', list(theirs.new))}")
    other = MobileViTImageProcessor.from_dict(written.preprocessor)
    worst = 0.0
    for photograph in load_sample_images().images:
        ours, its = (
            _output(model, rules, photograph)
            for model, rules in ((found.model, processor), (theirs.model, other))
        )
        if ours.shape != its.shape:
            worst = np.inf
            break
        worst = max(worst, float(np.abs(ours - its).max() / np.abs(ours).max()))
    if not worst <= _TOLERANCE:
        raise WeightsError(
            f"the model does not compute the same there (outputs differ by {worst:.1%} on a "
            f"photograph), so nothing was written: {'; '.join(differences) or 'no rule differs'}"
        )
    return f"outputs on two photographs differ by {worst:.1e} of the largest"


def _output(model: Any, rules: MobileViTImageProcessor, photograph: np.ndarray) -> np.ndarray:
    pixels = rules([photograph], return_tensors="np")["pixel_values"]

    @nnx.jit
    def run(model: Any, pixels: jax.Array) -> jax.Array:
        output = model(pixels)
        return output.logits if hasattr(output, "logits") else output.last_hidden_state

    return np.asarray(run(model, pixels))
