"""The published protocol of segmentation: one confusion matrix over whole images.

The model sees the views of `data/protocol.py`; its logits are interpolated to the size of the
original map, the corners kept in place, and the largest wins. With several views, or mirrored
ones, their probabilities are averaged at that size. Nothing is padded but the maps, whose padding
is void, and the last batch of a group, which is masked.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int, UInt8

from mobilevitv2_jax.data.protocol import ROWS
from mobilevitv2_jax.evaluation.classification import Batch, Weights
from mobilevitv2_jax.evaluation.metrics import (
    confusion_matrix,
    have_class,
    intersection_over_union,
    segmentation_metrics,
)
from mobilevitv2_jax.models.functional import Arrays, merge
from mobilevitv2_jax.models.pixels import Pixels

ProtocolStep = Callable[[Arrays, Arrays, dict[str, Array]], tuple[Array, Array]]


def make_protocol_step(
    graph: nnx.GraphDef, pixels: Pixels, ignored: int, flip: bool = False
) -> ProtocolStep:
    """Returns the evaluation step, to be jitted.

    The step takes (parameters, statistics, batch) with the entries of `data/protocol.py`, and
    returns the confusion matrix of each image [batch, classes, classes] and the predicted classes
    [batch, rows, columns] in uint8.

    Args:
        graph: the static part of the model, in evaluation mode.
        pixels: what becomes of the views before the model sees them.
        ignored: the label of pixels without a class.
        flip: also show every view mirrored.
    """

    def protocol_step(
        parameters: Arrays, statistics: Arrays, batch: dict[str, Array]
    ) -> tuple[Array, Array]:
        model = merge(graph, parameters, statistics)
        views = [pixels(batch[name]) for name in sorted(batch) if name.startswith("image_")]
        logits = [model(view).logits.astype(jnp.float32) for view in views]
        if flip:
            mirrored = [model(view[:, :, ::-1]).logits.astype(jnp.float32) for view in views]
            logits += [scores[:, :, ::-1] for scores in mirrored]
        labels, classes = batch["label"], logits[0].shape[-1]
        _, rows, columns = labels.shape
        predicted = upsampled_classes(logits, batch["size"], (rows, columns))
        counted = have_class(labels, classes, ignored) & (batch["mask"] > 0)[:, None, None]
        matrices = jax.vmap(functools.partial(confusion_matrix, classes=classes))
        return matrices(labels, predicted, counted), predicted

    return protocol_step


def upsampled_classes(
    logits: list[Float[Array, "batch height width classes"]],
    sizes: Int[Array, "batch 2"],
    bound: tuple[int, int],
) -> UInt8[Array, "batch rows columns"]:
    """Returns the most probable class of every pixel of the original maps.

    Args:
        logits: scores of the views of each image.
        sizes: rows and columns of each image's map; what lies beyond them has no meaning.
        bound: rows and columns of the result, of which the former are a multiple of `ROWS`.
    """
    rows, columns = bound
    wide = [_interpolate(x, _weights(x.shape[2], sizes[:, 1], columns), 2) for x in logits]

    # Stripe by stripe: the scores of all pixels of a large image, 150 each, would fill a device.
    def stripe(weights: list[Array]) -> Array:
        scores = [_interpolate(x, w, 1) for x, w in zip(wide, weights, strict=True)]
        if len(scores) > 1:
            scores = [sum(jax.nn.softmax(x, axis=-1) for x in scores)]  # type: ignore[list-item]
        return scores[0].argmax(-1).astype(jnp.uint8)

    stripes = [_weights(x.shape[1], sizes[:, 0], rows) for x in logits]
    stripes = [jnp.moveaxis(w.reshape(len(w), rows // ROWS, ROWS, -1), 1, 0) for w in stripes]
    classes = jnp.moveaxis(jax.lax.map(stripe, stripes), 0, 1)
    return classes.reshape(len(sizes), rows, columns)


def _weights(
    source: int, targets: Int[Array, " batch"], bound: int
) -> Float[Array, "batch bound source"]:
    """Returns matrices that interpolate an axis to each of several lengths, corners in place."""
    step = (source - 1) / jnp.maximum(targets - 1, 1).astype(jnp.float32)
    places = jnp.minimum(jnp.arange(bound) * step[:, None], source - 1)
    return jnp.maximum(1 - jnp.abs(places[..., None] - jnp.arange(source)), 0)


def _interpolate(x: Array, weights: Array, axis: int) -> Array:
    equation = {1: "bth,bhwc->btwc", 2: "btw,bhwc->bhtc"}[axis]
    # On TPU the default would round weights and scores to bfloat16.
    return jnp.einsum(equation, weights, x, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True, order=True)
class Segmented:
    """One image of the set with what the model says of it.

    Attributes:
        iou: mean IoU over the classes that its truth or its prediction shows.
        index: which example it is.
        classes: the predicted classes [rows, columns], with the padding of its group.
    """

    iou: float
    index: int
    classes: np.ndarray = dataclasses.field(compare=False, repr=False)


@dataclasses.dataclass
class Judgement:
    """What one pass has found of some weights.

    Attributes:
        confusion: [true class, predicted class], over all pixels that count.
        worst: the images with the lowest IoU, lowest first.
        best: those with the highest, highest first.
    """

    confusion: np.ndarray
    worst: list[Segmented] = dataclasses.field(default_factory=list)
    best: list[Segmented] = dataclasses.field(default_factory=list)

    def metrics(self, class_names: Iterable[str]) -> dict[str, float]:
        """Returns mIoU, pixel accuracy, and the IoU of each class that occurs.

        Raises:
            ValueError: if no pixel was counted.
        """
        if not self.confusion.any():
            raise ValueError("no pixel was evaluated: all are void, or no image could be read")
        each = intersection_over_union(self.confusion)
        named = zip(class_names, each, strict=True)
        ious = {f"iou/{name}": float(iou) for name, iou in named if not np.isnan(iou)}
        return {**segmentation_metrics(self.confusion), **ious}

    def keep(self, found: list[Segmented], count: int) -> None:
        """Takes images in, and keeps the `count` worst and best."""
        self.worst = sorted([*self.worst, *found])[:count]
        self.best = sorted([*self.best, *found], reverse=True)[:count]


@dataclasses.dataclass(frozen=True)
class Compilations:
    """What compiling for the shapes of a set has cost.

    Attributes:
        count: programs.
        seconds: for all of them.
    """

    count: int
    seconds: float


def evaluate_protocol(
    step: ProtocolStep,
    weights: Weights,
    batches: Iterable[Batch],
    put: Callable[[Batch], dict[str, jax.Array]],
    shardings: Any,
    extremes: int = 0,
) -> tuple[dict[str, Judgement], Compilations]:
    """Judges weights on every image of a set.

    Every shape is compiled once, for all weights; of the programs only the last one is kept.

    Args:
        step: what `make_protocol_step` returns.
        weights: what to judge; all of it sees the same batches.
        batches: host batches of a `data.protocol.Plan`, group by group.
        put: makes a batch global.
        shardings: of the step's two outputs; the first whole on every device.
        extremes: how many of the worst and of the best images to keep.

    Returns:
        What was found of each of the weights, and what compiling has cost.
    """
    jitted = jax.jit(step, out_shardings=shardings)
    judgements: dict[str, Judgement] = {}
    shapes, compiled, count, seconds = None, None, 0, 0.0
    for batch in batches:
        arrays = put({name: batch[name] for name in batch if name not in ("index", "corrupt")})
        found = jax.tree.map(lambda x: x.shape, arrays)
        if found != shapes:
            compiled = None  # before the next one takes its memory
            started = time.perf_counter()
            compiled = jitted.lower(*next(iter(weights.values())), arrays).compile()
            shapes, count, seconds = found, count + 1, seconds + time.perf_counter() - started
        for prefix, (parameters, statistics) in weights.items():
            matrices, classes = compiled(parameters, statistics, arrays)  # type: ignore[misc]
            matrices = np.asarray(
                matrices, np.int64
            )  # pixels of a set may be more than int32 counts
            empty = Judgement(np.zeros(matrices.shape[1:], np.int64))
            judgement = judgements.setdefault(prefix, empty)
            judgement.confusion += matrices.sum(0)
            if extremes:
                indices = multihost_utils.process_allgather(batch["index"], tiled=True)
                _keep_extremes(judgement, matrices, classes, indices, extremes)
    return judgements, Compilations(count, seconds)


def _keep_extremes(
    judgement: Judgement, matrices: np.ndarray, classes: jax.Array, indices: np.ndarray, count: int
) -> None:
    rows = [row for row, index in enumerate(indices) if index >= 0 and matrices[row].any()]
    maps = np.asarray(multihost_utils.process_allgather(classes, tiled=True))
    found = [
        Segmented(segmentation_metrics(matrices[row])["miou"], int(indices[row]), maps[row])
        for row in rows
    ]
    judgement.keep(found, count)


def named_metrics(
    judgements: Mapping[str, Judgement], class_names: Iterable[str]
) -> dict[str, float]:
    """Returns "eval/miou", "eval_ema/iou/person", … of what was found."""
    names = list(class_names)
    return {
        f"{prefix}/{name}": value
        for prefix, judgement in judgements.items()
        for name, value in judgement.metrics(names).items()
    }
