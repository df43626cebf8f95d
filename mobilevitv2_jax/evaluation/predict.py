"""Predictions for pictures of any size: classes with their probabilities, or a class a pixel."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int, UInt8

from mobilevitv2_jax.errors import ImageError, WeightsError
from mobilevitv2_jax.evaluation.explain import class_activation
from mobilevitv2_jax.images import target_size, to_array
from mobilevitv2_jax.models.functional import merge, split
from mobilevitv2_jax.models.outputs import SemanticSegmenterOutput
from mobilevitv2_jax.models.tasks import (
    MobileViTV2ForImageClassification,
    MobileViTV2ForSemanticSegmentation,
)
from mobilevitv2_jax.processing import MobileViTImageProcessor
from mobilevitv2_jax.weights import pretrained

_ELONGATED = 4
"""Long side over short side up to which a picture is segmented at full size."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A class that was found in a picture.

    Attributes:
        index: its number.
        label: its name.
        share: its probability, or the share of the pixels that it covers.
    """

    index: int
    label: str
    share: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was found in a picture.

    Attributes:
        found: the classes, from the largest share down.
        image: the picture as the model saw it, in RGB; of a segmentation, the whole picture.
        classes: of a segmentation, the class of every pixel.
        heat: where the model finds each class that it names, in [0, 1] and as coarse as its
            maps; only where it is asked for.
    """

    found: tuple[Found, ...]
    image: UInt8[np.ndarray, "height width 3"]
    classes: Int[np.ndarray, "height width"] | None = None
    heat: tuple[tuple[Found, Float[np.ndarray, "rows columns"]], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns what was found in a form for JSON."""
        name = "probability" if self.classes is None else "share"
        found = [{"label": x.label, "index": x.index, name: x.share} for x in self.found]
        return {"classes": found}


class Predictor:
    """A model with its image processor.

    Args:
        model: a classifier or a segmenter, in evaluation mode.
        processor: how its images are brought in.
        top_k: how many classes of a classifier are named.
        explain: also return where they are found.

    Raises:
        WeightsError: if the model has no head, or one whose outputs are no classes.
    """

    def __init__(
        self,
        model: Any,
        processor: MobileViTImageProcessor,
        *,
        top_k: int = 5,
        explain: bool = False,
    ) -> None:
        tasks: dict[type, Callable[[list[Any]], list[Prediction]]] = {
            MobileViTV2ForImageClassification: self._classify,
            MobileViTV2ForSemanticSegmentation: self._segment,
        }
        config = model.config
        if type(model) not in tasks or not config.num_labels:
            raise WeightsError("these weights have no head, so they name no classes")
        if type(model) is MobileViTV2ForImageClassification and config.is_regression:
            raise WeightsError("this model was trained for regression: it names no classes")
        if config.num_channels != 3:
            raise WeightsError(f"this model takes {config.num_channels} channels, and pictures 3")
        self.segments = type(model) is MobileViTV2ForSemanticSegmentation
        self.labels = config.id2label
        self._predict = tasks[type(model)]
        self._processor, self._config = processor, config
        self._top_k, self._explain = min(top_k, config.num_labels), explain
        graphs, self._parameters, self._statistics = split(model)
        self._graph = graphs.evaluation

    def __call__(
        self, images: Iterable[Any], batch_size: int = 8
    ) -> Iterator[Prediction | ImageError]:
        """Returns what is found in each picture, in their order.

        Args:
            images: paths, images of Pillow's or arrays: `images.to_array` says which.
            batch_size: how many are read, and at most computed, at a time.

        Returns:
            Predictions; in the place of a picture that cannot be read, its error.
        """
        rest = iter(images)
        while batch := list(itertools.islice(rest, batch_size)):
            yield from self._together(batch)

    def _together(self, images: list[Any]) -> list[Prediction | ImageError]:
        arrays: list[Any] = []
        for image in images:
            try:
                arrays.append(_bytes(to_array(image)))
            except ImageError as error:
                arrays.append(error)
        readable = [array for array in arrays if isinstance(array, np.ndarray)]
        predictions = iter(self._predict(readable))
        return [x if isinstance(x, ImageError) else next(predictions) for x in arrays]

    # ---- Classification ------------------------------------------------------------------

    def _classify(self, arrays: list[np.ndarray]) -> list[Prediction]:
        pixels = [self._processor(array)["pixel_values"][0] for array in arrays]
        shown = [
            self._processor(
                array, do_rescale=False, do_normalize=False, do_flip_channel_order=False
            )["pixel_values"][0]
            for array in arrays
        ]
        predictions = []
        for image, (shares, heat) in zip(shown, self._run(self._scores, pixels), strict=True):
            order = np.argsort(-shares, kind="stable")[: self._top_k]
            found = tuple(self._found(index, shares[index]) for index in order)
            where = ((found[0], _scaled(heat)),) if self._explain else ()
            predictions.append(Prediction(found, image, heat=where))
        return predictions

    @functools.cached_property
    def _scores(self) -> Callable[..., tuple[Array, Array]]:
        several = self._config.problem_type == "multi_label_classification"
        to_shares = jax.nn.sigmoid if several else jax.nn.softmax

        @jax.jit
        def scores(parameters: Any, statistics: Any, pixels: Array) -> tuple[Array, Array]:
            model = merge(self._graph, parameters, statistics)
            if self._explain:
                logits, heat = class_activation(model, pixels)
            else:
                logits, heat = model(pixels).logits, jnp.zeros((len(pixels), 0))
            return to_shares(logits.astype(jnp.float32)), heat

        return scores

    # ---- Segmentation --------------------------------------------------------------------

    def _segment(self, arrays: list[np.ndarray]) -> list[Prediction]:
        """Segments whole pictures: what the crop of a processor cuts off counts, too."""
        pixels = [
            self._processor(array, do_center_crop=False, size=self._size(array))["pixel_values"][0]
            for array in arrays
        ]
        predictions = []
        for array, (logits,) in zip(arrays, self._run(self._maps, pixels), strict=True):
            output = SemanticSegmenterOutput(logits=jnp.asarray(logits[None]))
            sizes = [array.shape[:2]]
            (classes,) = self._processor.post_process_semantic_segmentation(output, sizes)
            counts = np.bincount(classes.ravel(), minlength=len(self.labels))
            order = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
            found = tuple(self._found(index, counts[index] / classes.size) for index in order)
            shares = np.asarray(jax.nn.softmax(logits)) if self._explain else None
            heat = tuple((x, shares[..., x.index]) for x in found) if shares is not None else ()
            predictions.append(Prediction(found, array, classes, heat))
        return predictions

    @functools.cached_property
    def _maps(self) -> Callable[..., tuple[Array]]:
        @jax.jit
        def maps(parameters: Any, statistics: Any, pixels: Array) -> tuple[Array]:
            model = merge(self._graph, parameters, statistics)
            return (model(pixels).logits.astype(jnp.float32),)

        return maps

    def _size(self, array: np.ndarray) -> dict[str, int]:
        """Returns the size at which a picture is segmented.

        The short side is that of the processor's crop, or of its resizing where it does not
        crop: the scale that the weights were trained at. Sides are rounded to what all feature
        maps divide (`docs/peers.md`: no rule on odd sizes acts then); that also bounds the
        number of shapes, each of which is compiled.
        """
        processor, height, width = self._processor, array.shape[0], array.shape[1]
        if not processor.do_resize:
            wanted = (height, width)
        elif "height" in processor.size:
            return processor.size
        else:
            crop = min(processor.crop_size.values())
            short = crop if processor.do_center_crop else processor.size["shortest_edge"]
            most = {"shortest_edge": short, "longest_edge": _ELONGATED * short}
            wanted = target_size(height, width, most)
        multiple = self._config.patch_size * self._config.output_stride
        rows, columns = (max(1, round(side / multiple)) * multiple for side in wanted)
        return {"height": rows, "width": columns}

    # ---- Both ----------------------------------------------------------------------------

    def _found(self, index: int, share: float) -> Found:
        return Found(int(index), self.labels[int(index)], float(share))

    def _run(
        self, function: Callable[..., tuple[Array, ...]], pixels: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, ...]]:
        """Applies a jitted function to images, those of one shape together.

        Their number is filled up to a power of two, so that few programs are compiled.
        """
        outputs: dict[int, tuple[np.ndarray, ...]] = {}
        for shape in {x.shape for x in pixels}:
            members = [number for number, x in enumerate(pixels) if x.shape == shape]
            batch = np.zeros((1 << (len(members) - 1).bit_length(), *shape), np.float32)
            batch[: len(members)] = [pixels[number] for number in members]
            results = map(np.asarray, function(self._parameters, self._statistics, batch))
            outputs |= zip(members, zip(*results, strict=True), strict=False)
        return [outputs[number] for number in range(len(pixels))]


def _bytes(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.uint8 else np.rint(255 * array).astype(np.uint8)


def _scaled(heat: np.ndarray) -> np.ndarray:
    """Scales to [0, 1]."""
    return heat / heat.max() if heat.max() > 0 else heat


def load_predictor(
    path: epath.PathLike, *, top_k: int = 5, explain: bool = False, **options: Any
) -> Predictor:
    """Loads weights with the image rules that belong to them.

    Args:
        path: whatever `from_pretrained` takes.
        top_k: how many classes of a classifier are named.
        explain: also return where they are found.
        **options: of `weights.pretrained.load`.

    Raises:
        WeightsError: if it cannot be read, or names no classes.
    """
    loaded = pretrained.load(path, **options)
    processor = MobileViTImageProcessor.from_dict(loaded.stored.preprocessor)
    return Predictor(loaded.model, processor, top_k=top_k, explain=explain)
