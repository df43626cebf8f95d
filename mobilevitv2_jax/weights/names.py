"""ONE table: our parameter paths, and the keys under which the peers store the same arrays.

Sources: "hf" is Hugging Face transformers, "timm" is timm, "cvnets" is apple/ml-cvnets (whose
column follows its module definitions).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.models.config import nearest


class _Row(NamedTuple):
    """Our name, the peers' names, and what the thing is."""

    ours: str
    hf: str
    timm: str
    cvnets: str
    kind: str = ""


SOURCES = ("hf", "timm", "cvnets")

# Numbers: {early} is a stage without attention, {late} one with it (both from 0), {number} the
# stage from 1, {block} and {layer} count inside it, {layers} is its number of attention layers.
_DIGITS = {
    "early": "[01]",
    "late": "[2-4]",
    "block": r"\d+",
    "layer": r"\d+",
    "branch": "[0-3]",
}

_ABSENT = "absent"  # stands where a source has no such module
HEADS = ("classifier.", "segmentation_head.", "auxiliary_head.")
"""Beginnings of our paths that are not the backbone's."""

# fmt: off
_MODULES = [  # (common beginning of the names, modules)
    (_Row("backbone.", "mobilevitv2.", "", ""), [
        _Row("stem", "conv_stem", "stem", "conv_1", "conv_norm"),
    ]),
    (_Row("backbone.stages.{early}.{block}.", "mobilevitv2.encoder.layer.{early}.layer.{block}.",
          "stages.{early}.{block}.", "layer_{number}.{block}.block."), [
        _Row("expand",    "expand_1x1", "conv1_1x1", "exp_1x1",  "conv_norm"),
        _Row("depthwise", "conv_3x3",   "conv2_kxk", "conv_3x3", "conv_norm"),
        _Row("project",   "reduce_1x1", "conv3_1x1", "red_1x1",  "conv_norm"),
    ]),
    (_Row("backbone.stages.{late}.0.", "mobilevitv2.encoder.layer.{late}.downsampling_layer.",
          "stages.{late}.0.", "layer_{number}.0.block."), [
        _Row("expand",    "expand_1x1", "conv1_1x1", "exp_1x1",  "conv_norm"),
        _Row("depthwise", "conv_3x3",   "conv2_kxk", "conv_3x3", "conv_norm"),
        _Row("project",   "reduce_1x1", "conv3_1x1", "red_1x1",  "conv_norm"),
    ]),
    (_Row("backbone.stages.{late}.1.", "mobilevitv2.encoder.layer.{late}.",
          "stages.{late}.1.", "layer_{number}.1."), [
        _Row("local",   "conv_kxk",        "conv_kxk",  "local_rep.0",         "conv_norm"),
        _Row("enter",   "conv_1x1",        "conv_1x1",  "local_rep.1",         "conv"),
        _Row("norm",    "layernorm",       "norm",      "global_rep.{layers}", "norm"),
        _Row("project", "conv_projection", "conv_proj", "conv_proj",           "conv_norm"),
    ]),
    (_Row("backbone.stages.{late}.1.layers.{layer}.",
          "mobilevitv2.encoder.layer.{late}.transformer.layer.{layer}.",
          "stages.{late}.1.transformer.{layer}.", "layer_{number}.1.global_rep.{layer}."), [
        _Row("attention_norm",    "layernorm_before",   "norm1",         "pre_norm_attn.0", "norm"),
        _Row("attention.qkv",     "attention.qkv_proj", "attn.qkv_proj",
             "pre_norm_attn.1.qkv_proj", "conv"),
        _Row("attention.out",     "attention.out_proj", "attn.out_proj",
             "pre_norm_attn.1.out_proj", "conv"),
        _Row("feed_forward_norm", "layernorm_after",    "norm2",         "pre_norm_ffn.0",  "norm"),
        _Row("feed_forward.up",   "ffn.conv1",          "mlp.fc1",       "pre_norm_ffn.1",  "conv"),
        _Row("feed_forward.down", "ffn.conv2",          "mlp.fc2",       "pre_norm_ffn.3",  "conv"),
    ]),
    (_Row("", "", "", ""), [
        _Row("classifier", "classifier", "head.fc", "classifier.1", "linear"),
    ]),
    (_Row("segmentation_head.", "segmentation_head.", _ABSENT, "seg_head."), [
        _Row("branches.{branch}", "aspp.convs.{branch}",    "", "aspp.aspp_layer.convs.{branch}",
             "conv_norm"),
        _Row("branches.4.conv",   "aspp.convs.4.conv_1x1",  "",
             "aspp.aspp_layer.convs.4.aspp_pool.conv_1x1",  "conv_norm"),
        _Row("project",           "aspp.project",           "", "aspp.aspp_layer.project",
             "conv_norm"),
        _Row("classifier",        "classifier",             "", "classifier", "conv"),
    ]),
    (_Row("segmentation_head.", _ABSENT, _ABSENT, "seg_head.psp_layer."), [
        _Row("pools.{branch}.conv", "", "", "psp_branches.{branch}.1", "conv_norm"),
        _Row("fuse",                "", "", "fusion.0",                "conv_norm"),
    ]),
    (_Row("auxiliary_head.", _ABSENT, _ABSENT, "seg_head.aux_head."), [
        _Row("conv",       "", "", "0", "conv_norm"),
        _Row("classifier", "", "", "2", "conv"),
    ]),
]
_ARRAYS = {  # the arrays of each kind of module, with their layout: see `Entry`
    "conv_norm": [
        _Row("convolution.kernel", "convolution.weight", "conv.weight", "block.conv.weight",
             "conv"),
        _Row("normalization.scale", "normalization.weight", "bn.weight", "block.norm.weight"),
        _Row("normalization.bias", "normalization.bias", "bn.bias", "block.norm.bias"),
        _Row("normalization.mean", "normalization.running_mean", "bn.running_mean",
             "block.norm.running_mean"),
        _Row("normalization.variance", "normalization.running_var", "bn.running_var",
             "block.norm.running_var"),
    ],
    "conv": [
        _Row("kernel", "convolution.weight", "weight", "block.conv.weight", "conv"),
        _Row("bias",   "convolution.bias",   "bias",   "block.conv.bias"),
    ],
    "norm": [_Row("scale", "weight", "weight", "weight"), _Row("bias", "bias", "bias", "bias")],
    "linear": [
        _Row("kernel", "weight", "weight", "weight", "linear"),
        _Row("bias",   "bias",   "bias",   "bias"),
    ],
}
# fmt: on


def _rows() -> list[tuple[re.Pattern, _Row]]:
    """Returns one row for each array, in full, with the pattern of our path."""
    rows = []
    for start, modules in _MODULES:
        for module in modules:
            for array in _ARRAYS[module.kind]:
                parts = zip(start[:4], module[:4], array[:4], strict=True)
                row = _Row(*(f"{a}{b}.{c}" for a, b, c in parts))._replace(kind=array.kind)
                pattern = re.escape(row.ours)
                for name, digits in _DIGITS.items():
                    pattern = pattern.replace(rf"\{{{name}\}}", f"(?P<{name}>{digits})")
                rows.append((re.compile(pattern), row))
    return rows


_ROWS = _rows()


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array: our path, the source's key, and how the two are laid out.

    Attributes:
        path: our path, as in `models.functional.arrays`.
        key: the source's key.
        layout: "" is the same in both. The others turn channels last into channels first:
            "conv" [height, width, inputs, outputs] into [outputs, inputs, height, width], and
            [inputs, outputs] into [outputs, inputs, 1, 1] where we multiply matrices;
            "linear" [inputs, outputs] into [outputs, inputs].
    """

    path: str
    key: str
    layout: str

    def to_source(self, array: np.ndarray) -> np.ndarray:
        """Returns our array in the source's layout."""
        if self.layout == "conv":
            return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T[..., None, None]
        return array.T if self.layout == "linear" else array

    def from_source(self, array: np.ndarray, rank: int) -> np.ndarray:
        """Returns the source's array in our layout, where it has `rank` axes."""
        if self.layout == "conv":
            return array.transpose(2, 3, 1, 0) if rank == 4 else array[..., 0, 0].T
        return array.T if self.layout == "linear" else array

    @property
    def counter(self) -> str | None:
        """Key of PyTorch's count of BatchNorm updates, which has no effect, beside a variance."""
        stem, found, _ = self.key.rpartition("running_var")
        return f"{stem}num_batches_tracked" if found else None


def head_keys(source: str) -> tuple[str, ...]:
    """Returns the beginnings of the keys under which a source, or "ours", stores heads."""
    return {
        "ours": HEADS,
        "hf": ("classifier.", "segmentation_head."),
        "timm": ("head.",),
        "cvnets": ("classifier.", "seg_head."),
    }[source]


def full_keys(keys: Iterable[str], source: str) -> dict[str, str]:
    """Returns for each key of a file the one it would have in a classifier.

    Hugging Face prefixes the backbone only in a model with a head, and ml-cvnets only in a
    segmentation model.
    """
    keys = list(keys)
    if source == "cvnets":
        return {key: key.removeprefix("encoder.") for key in keys}
    if source == "hf" and not any(key.startswith("mobilevitv2.") for key in keys):
        heads = head_keys(source)
        return {key: key if key.startswith(heads) else f"mobilevitv2.{key}" for key in keys}
    return {key: key for key in keys}


def entry_of(path: str, source: str, depths: tuple[int, ...]) -> Entry:
    """Returns the entry of one of our arrays.

    Args:
        path: our path in a model with a head.
        source: one of `SOURCES`, or "ours", where the key is our path.
        depths: the number of attention layers in stages 3, 4 and 5.

    Raises:
        ValueError: if the source has no place for the array.
    """
    if source == "ours":
        return Entry(path, path, "")
    for pattern, row in _ROWS:
        if match := pattern.fullmatch(path):
            values = {name: int(digits) for name, digits in match.groupdict().items()}
            stage = values.get("late", values.get("early", 0))
            values |= {"number": stage + 1, "layers": depths[max(stage - 2, 0)]}
            key = getattr(row, source).format(**values)
            if key.startswith(_ABSENT):
                raise ValueError(f"the weights of {source} have no place for our {path}")
            return Entry(path, key, row.kind)
    raise NotImplementedError(f"weights/names.py has no row for {path}")


def _table(
    model: nnx.Module, source: str, without: tuple[str, ...] = ()
) -> tuple[list[Entry], dict[str, jax.Array]]:
    """Returns an entry for every array of the model, and the arrays by our path."""
    if source not in SOURCES:
        raise ValueError(
            f"source must be one of {', '.join(SOURCES)}, got {source!r}{nearest(source, SOURCES)}"
        )
    parameters, statistics = functional.arrays(model)
    arrays = {
        path: array
        for path, array in {**parameters, **statistics}.items()
        if not path.startswith(without)
    }
    depths = model.config.n_attn_blocks  # type: ignore[attr-defined]
    # There the backbone is the encoder of a segmentation model, and plain in a classifier.
    encoder = source == "cvnets" and hasattr(model, "segmentation_head")
    return [_own_entry(path, source, depths, encoder) for path in arrays], arrays


def _own_entry(path: str, source: str, depths: tuple[int, ...], encoder: bool) -> Entry:
    bare = not path.startswith(("backbone.", *HEADS))
    found = entry_of(f"backbone.{path}" if bare else path, source, depths)
    key = found.key.removeprefix("mobilevitv2.") if bare else found.key
    if encoder and path.startswith("backbone."):
        key = f"encoder.{key}"
    return Entry(path, key, found.layout)


def state_dict(
    model: nnx.Module, source: str = "hf", *, without: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Returns the model's arrays under a source's keys and in its layouts, bit for bit.

    Args:
        model: a model, or a bare backbone (whose keys then carry no prefix).
        source: one of `SOURCES`.
        without: beginnings of our paths to leave out.

    Raises:
        ValueError: for an unknown source, or one that has no place for an array.
    """
    table, ours = _table(model, source, without)
    theirs = {e.key: np.array(e.to_source(np.asarray(ours[e.path])), order="C") for e in table}
    return theirs | {e.counter: np.zeros((), np.int64) for e in table if e.counter}


def load_state_dict(
    model: nnx.Module, arrays: Mapping[str, np.ndarray], source: str = "hf"
) -> None:
    """Writes a source's arrays into the model in place; all of them, or on an error none.

    Floating point numbers are widened to the parameter's type where need be, never narrowed.

    Args:
        model: a model, or a bare backbone (whose keys then carry no prefix).
        arrays: the source's arrays by key; PyTorch's `num_batches_tracked` may be there or not.
        source: one of `SOURCES`.

    Raises:
        ValueError: for an unknown source.
        WeightsError: for missing, unexpected or mismatched arrays, all of which are listed.
    """
    table, ours = _table(model, source)
    found = compare(table, ours, arrays)
    if not found.complete:
        raise WeightsError(f"these are not the {source} weights of this model\n{found.listed()}")
    functional.update(model, found.loaded)


@dataclasses.dataclass(frozen=True)
class Match:
    """What became of every array of a model, and of every array of a file.

    Attributes:
        loaded: the arrays that fit, by our path and in our layout.
        missing: the keys that the file lacks, by our path.
        mismatched: what was expected and what is there, by our path.
        unexpected: the keys of the file that the model has no place for.
    """

    loaded: dict[str, jax.Array]
    missing: dict[str, str]
    mismatched: dict[str, str]
    unexpected: list[str]

    @property
    def complete(self) -> bool:
        """Whether all of both were matched."""
        return not (self.missing or self.mismatched or self.unexpected)

    def listed(self) -> str:
        """Returns lists of all that was not matched."""
        lists = {
            "missing": sorted(self.missing.values()),
            "unexpected": sorted(self.unexpected),
            "mismatched": list(self.mismatched.values()),
        }
        return "\n".join(listed(name, keys) for name, keys in lists.items() if keys)


def compare(table: Iterable[Entry], ours: Mapping[str, Any], arrays: Mapping[str, Any]) -> Match:
    """Compares a file's arrays with those of a model.

    Args:
        table: an entry for each array of the model.
        ours: the model's arrays by path, or their shapes and types.
        arrays: the file's arrays by key.
    """
    found = Match({}, {}, {}, [])
    expected: set[str | None] = set()
    for entry in table:
        expected |= {entry.key, entry.counter}
        if entry.key not in arrays:
            found.missing[entry.path] = entry.key
            continue
        own, given = ours[entry.path], np.asarray(arrays[entry.key])
        wanted = entry.to_source(np.broadcast_to(np.zeros((), own.dtype), own.shape))
        if given.shape == wanted.shape and _widens(given.dtype, own.dtype):
            array = entry.from_source(given, own.ndim)
            found.loaded[entry.path] = jnp.asarray(array, own.dtype)
        else:
            found.mismatched[entry.path] = (
                f"{entry.key}: expected {_form(wanted)}, got {_form(given)}"
            )
    found.unexpected.extend(arrays.keys() - expected)
    return found


def _widens(given: np.dtype, own: np.dtype) -> bool:
    return bool(jnp.issubdtype(given, jnp.floating)) and jnp.promote_types(given, own) == own


def _form(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def listed(name: str, keys: list[str], most: int = 30) -> str:
    """Returns a heading and the keys, a line for each; of many, the first ones."""
    more = [f"and {len(keys) - most} more"] if len(keys) > most else []
    return "\n  ".join([f"{len(keys)} {name}:", *keys[:most], *more])
