"""From and to files of weights: `from_pretrained` and `save_pretrained` of the models."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from etils import epath
from flax import nnx

from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.models.backbone import MobileViTV2Model
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.models.tasks import (
    MobileViTV2ForImageClassification,
    MobileViTV2ForSemanticSegmentation,
)
from mobilevitv2_jax.weights import formats, names
from mobilevitv2_jax.weights.formats import Stored

Model = TypeVar("Model", bound=nnx.Module)

_CLASSIFIERS = ("classifier.", "segmentation_head.classifier.", "auxiliary_head.classifier.")
"""Beginnings of our paths that depend on the number of classes."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its weights, and where they came from.

    Attributes:
        model: in evaluation mode.
        stored: what was read: configuration, rules of images, and what was assumed.
        new: our paths of the arrays that the source has not, and that were drawn.
        dropped: keys of the source for which the model has no place.
        notes: what there is to say of the two, and of what was assumed or is not finite.
    """

    model: Any
    stored: Stored
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]


def from_pretrained(cls: type[Model], path: epath.PathLike, **options: Any) -> Model:
    """Returns a model with the weights of `path`, in evaluation mode; see `load`."""
    return load(path, cls, **options).model


def load(
    path: epath.PathLike,
    cls: type[nnx.Module] | None = None,
    *,
    checkpoint: str | int = "latest",
    average: bool = True,
    ignore_mismatched_sizes: bool = False,
    rngs: nnx.Rngs | None = None,
    **fields: Any,
) -> Pretrained:
    """Loads weights under the rules of their source; every array is accounted for.

    Args:
        path: a directory of Hugging Face's, of timm's or of `save_pretrained`; a file of
            weights of theirs or of ml-cvnets; a run directory; an identifier on the Hugging Face
            hub, such as apple/mobilevitv2-1.0-imagenet1k-256.
        cls: the class of the model; that of the weights' own head by default. Of another task,
            the backbone is loaded and the head drawn anew, with a warning.
        checkpoint: of a run directory: "latest", "best", or a step.
        average: of a run directory: the moving average of the weights, not the weights.
        ignore_mismatched_sizes: draw a classifier anew whose number of classes differs.
        rngs: source of what is drawn anew; seed 0 by default.
        **fields: fields of `MobileViTV2Config` in the place of the source's.

    Raises:
        WeightsError: if the path cannot be read, or its weights are not those of this model:
            all missing, unexpected and mismatched keys are listed; or if they are stored in half
            precision, and `param_dtype` does not ask for it.
    """
    stored = formats.read(path, checkpoint, average)
    config = stored.config.replace(**fields)
    found = place(stored, cls or own_class(stored), config, ignore_mismatched_sizes, rngs)
    for line in found.notes:
        warnings.warn(f"{stored.where}: {line}", stacklevel=4)
    return found


def place(
    stored: Stored,
    cls: Callable[..., nnx.Module],
    config: MobileViTV2Config,
    ignore_mismatched_sizes: bool = False,
    rngs: nnx.Rngs | None = None,
) -> Pretrained:
    """Puts weights that were read into a model of a class and a config; see `load`."""
    _check_precision(stored, config)
    model: Any = cls(config, rngs=Blank())
    parameters, statistics = functional.arrays(model)
    ours = {**parameters, **statistics}
    found = _compare(stored, ours, config, bare=cls is MobileViTV2Model)
    new = _new(found, ours, ignore_mismatched_sizes)
    dropped = _dropped(found, stored.source)
    _check(found, new, dropped, stored)
    notes = _notes(stored, found, new, dropped)
    functional.update(model, found.loaded)
    if new:
        drawn = functional.arrays(cls(config, rngs=rngs or nnx.Rngs(0)))
        everything = {**drawn[0], **drawn[1]}
        functional.update(model, {path: everything[path] for path in new})
    model.eval()
    return Pretrained(model, stored, tuple(new), tuple(dropped), tuple(notes))


def own_class(stored: Stored) -> type[nnx.Module]:
    """Returns the class of the model whose weights these are."""
    beginnings = {
        MobileViTV2ForSemanticSegmentation: ("segmentation_head.", "seg_head."),
        MobileViTV2ForImageClassification: ("classifier.", "head."),
    }
    for cls, starts in beginnings.items():
        if any(key.startswith(starts) for key in stored.arrays):
            return cls
    # A run of a classifier without classes has no keys of a head, and is one all the same.
    return MobileViTV2Model if stored.config.num_labels else MobileViTV2ForImageClassification


def _compare(
    stored: Stored, ours: Mapping[str, Any], config: MobileViTV2Config, bare: bool
) -> names.Match:
    prefix = "backbone." if bare else ""
    table = []
    for path in ours:
        try:
            entry = names.entry_of(prefix + path, stored.source, config.n_attn_blocks)
        except ValueError:  # the source has no such module; its arrays count as missing
            entry = names.Entry(path, f"our {path}", "")
        table.append(dataclasses.replace(entry, path=path))
    return names.compare(table, ours, stored.arrays)


def _new(found: names.Match, ours: Mapping[str, Any], ignore: bool) -> list[str]:
    """Returns the paths to be drawn: heads that are not there at all, or of other classes."""
    new = []
    for head in names.HEADS:
        paths = {path for path in ours if path.startswith(head)}
        if paths <= found.missing.keys():
            new += sorted(paths)
    if ignore:
        new += [path for path in found.mismatched if path.startswith(_CLASSIFIERS)]
    return new


def _dropped(found: names.Match, source: str) -> list[str]:
    """Returns the keys of heads that the model does not have."""
    return sorted(key for key in found.unexpected if key.startswith(names.head_keys(source)))


def _check(found: names.Match, new: list[str], dropped: list[str], stored: Stored) -> None:
    """Refuses what may neither be drawn nor dropped."""
    rest = dataclasses.replace(
        found,
        missing={path: key for path, key in found.missing.items() if path not in new},
        mismatched={path: text for path, text in found.mismatched.items() if path not in new},
        unexpected=[key for key in found.unexpected if key not in dropped],
    )
    if rest.complete:
        return
    hint = ""
    if (
        not rest.missing
        and not rest.unexpected
        and all(path.startswith(_CLASSIFIERS) for path in rest.mismatched)
    ):
        hint = (
            "\nThe number of classes differs: ignore_mismatched_sizes=True draws the classifier "
            "anew, and num_labels says how many it is to have"
        )
    raise WeightsError(f"{stored.where}: the weights do not fit the model\n{rest.listed()}{hint}")


def _check_precision(stored: Stored, config: MobileViTV2Config) -> None:
    """Refuses half precision: as float32 it would pass for what it was rounded from."""
    half = {
        key: str(array.dtype)
        for key, array in stored.arrays.items()
        if array.dtype in ("float16", "bfloat16")
    }
    if not half or config.param_dtype in half.values():
        return
    key, dtype = next(iter(half.items()))
    raise WeightsError(
        f"{stored.where}: {key} and {len(half) - 1} more of {len(stored.arrays)} tensors are "
        f"{dtype}, and parameters are {config.param_dtype}: take the weights from before they were "
        f'rounded, or keep them as they are with param_dtype="{dtype}"'
    )


def _notes(stored: Stored, found: names.Match, new: list[str], dropped: list[str]) -> list[str]:
    lines = [stored.assumed] if stored.assumed else []
    if new:
        keys = [found.missing.get(path) or found.mismatched[path].partition(":")[0] for path in new]
        lines.append(names.listed("newly initialised, to be trained", keys))
    if dropped:
        lines.append(names.listed("not used, for the model has no place for them", dropped))
    broken = [path for path, array in found.loaded.items() if not np.isfinite(array).all()]
    if broken:
        lines.append(names.listed("with values that are NaN or infinite", broken))
    return lines
