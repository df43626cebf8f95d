"""Hugging Face's names of the weights of MobileViT, the first version."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.models.mobilevit import MobileViT
from mobilevitv2_jax.weights.names import Entry, compare, entry_of

_BLOCK = r"stages\.([2-4])\.1\."
_LAYER = _BLOCK + r"layers\.(\d+)\."
_THEIR_BLOCK = r"mobilevit.encoder.layer.\1."
_THEIR_LAYER = _THEIR_BLOCK + r"transformer.layer.\2."

# What MobileViTV2 does not have: our module, theirs, and the module of MobileViTV2 whose arrays
# are named in the same way. Of the rest, Hugging Face's two versions have the same names.
_MODULES = (
    (_LAYER + "attention.query", _THEIR_LAYER + "attention.attention.query", "classifier"),
    (_LAYER + "attention.key", _THEIR_LAYER + "attention.attention.key", "classifier"),
    (_LAYER + "attention.value", _THEIR_LAYER + "attention.attention.value", "classifier"),
    (_LAYER + "attention.out", _THEIR_LAYER + "attention.output.dense", "classifier"),
    (_LAYER + "feed_forward.up", _THEIR_LAYER + "intermediate.dense", "classifier"),
    (_LAYER + "feed_forward.down", _THEIR_LAYER + "output.dense", "classifier"),
    (_BLOCK + "fuse", _THEIR_BLOCK + "fusion", "backbone.stem"),
    ("expand", "mobilevit.conv_1x1_exp", "backbone.stem"),
)
_DEPTHS = (2, 4, 3)


def _entry(path: str) -> Entry:
    """Returns the entry of one of our arrays."""
    for ours, theirs, alike in _MODULES:
        if match := re.match(ours + r"\.", path):
            entry = entry_of(f"{alike}.{path[match.end() :]}", "hf", _DEPTHS)
            array = entry.key.removeprefix("mobilevitv2.conv_stem.").removeprefix("classifier.")
            return Entry(path, f"{match.expand(theirs)}.{array}", entry.layout)
    whole = path if path.startswith("classifier.") else f"backbone.{path}"
    entry = entry_of(whole, "hf", _DEPTHS)
    key = entry.key.replace("mobilevitv2.", "mobilevit.", 1)
    return dataclasses.replace(entry, path=path, key=key)


def load_state_dict(model: MobileViT, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes Hugging Face's arrays into the model in place; all of them, or on an error none.

    Args:
        model: the model.
        arrays: those of `MobileViTForImageClassification` by key.

    Raises:
        WeightsError: for missing, unexpected or mismatched arrays, all of which are listed.
    """
    parameters, statistics = functional.arrays(model)
    ours = {**parameters, **statistics}
    found = compare([_entry(path) for path in ours], ours, arrays)
    if not found.complete:
        raise WeightsError(f"these are not the weights of mobilevit_s\n{found.listed()}")
    functional.update(model, found.loaded)
