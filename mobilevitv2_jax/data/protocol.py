"""How a segmentation is judged in published tables: whole images, in groups of one shape.

An image is resized to a short side, its aspect kept, and then down to multiples of the output
stride. It is not padded: normalisation, attention and pooling would see the border. So the images
of a batch must come out equal, and the set is taken in groups.

Source: ml-cvnets `engine/eval_segmentation.py`, with `resize-input-images`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Int

from mobilevitv2_jax.data.augment import Example
from mobilevitv2_jax.data.image import resize_aligned, resize_short_side
from mobilevitv2_jax.data.segmentation import VOID

Size = tuple[int, int]
"""Height and width, in pixels."""

ROWS = 32
"""Maps are padded to multiples of it, so that they can be worked on in stripes."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What the model is shown of an image.

    Attributes:
        short_side: of the resized image, in pixels.
        stride: its sides are cut to multiples of this.
        interpolation: "bilinear" or "bicubic".
        scales: factors of `short_side`, one view of the image each; published figures have 1.
    """

    short_side: int
    stride: int
    interpolation: str
    scales: tuple[float, ...] = (1.0,)

    def shapes(self, size: Size) -> tuple[Size, ...]:
        """Returns what the views of an image of this size measure."""
        return tuple(self._floored(self._resized(size, scale)) for scale in self.scales)

    def views(self, image: np.ndarray) -> list[np.ndarray]:
        """Returns the views of an image, in [0, 255]."""
        return [
            resize_aligned(
                resize_short_side(image, self._short_side(scale), self.interpolation), shape
            )
            for scale, shape in zip(self.scales, self.shapes(image.shape[:2]), strict=True)
        ]

    def _short_side(self, scale: float) -> int:
        return max(1, round(self.short_side * scale))

    def _resized(self, size: Size, scale: float) -> Size:
        short = self._short_side(scale)
        return short * size[0] // min(size), short * size[1] // min(size)

    def _floored(self, size: Size) -> Size:
        height, width = (max(side // self.stride, 1) * self.stride for side in size)
        return height, width


@dataclasses.dataclass(frozen=True)
class Plan:
    """A pass over a set in groups of one shape, and the transform of its examples.

    Attributes:
        protocol: what the model is shown.
        order: the example at each position; as many as whole batches hold.
        counted: False where an example stands for padding, at the ends of groups.
        bounds: by the shapes of a group's views, the size to which its maps are padded.
    """

    protocol: Protocol
    order: Int[np.ndarray, " positions"]
    counted: np.ndarray
    bounds: Mapping[tuple[Size, ...], Size]

    def __call__(self, example: Example) -> Example:
        """Returns "image_0", … in float32, the padded map, and its true "size"."""
        label = example["label"]
        rows, columns = self.bounds[self.protocol.shapes(label.shape)]
        padding = ((0, rows - label.shape[0]), (0, columns - label.shape[1]))
        kept = {name: example[name] for name in ("index", "mask", "corrupt")}
        views = self.protocol.views(example["image"])
        return {
            **{f"image_{number}": view for number, view in enumerate(views)},
            "label": np.pad(label, padding, constant_values=VOID),
            "size": np.array(label.shape, np.int32),
            **kept,
        }


def make_plan(protocol: Protocol, sizes: Iterable[Size], batch_size: int) -> Plan:
    """Returns a pass over a set in which every example comes once.

    Args:
        protocol: what the model is shown.
        sizes: height and width of each example's map; one with a 0 is left out.
        batch_size: examples per batch, over all processes.
    """
    groups: dict[tuple[Size, ...], list[int]] = {}
    bounds: dict[tuple[Size, ...], Size] = {}
    for index, (height, width) in enumerate(sizes):
        if height and width:
            shapes = protocol.shapes((int(height), int(width)))
            groups.setdefault(shapes, []).append(index)
            rows, columns = bounds.get(shapes, (0, 0))
            rows, columns = max(rows, math.ceil(height / ROWS) * ROWS), max(columns, int(width))
            bounds[shapes] = (rows, columns)
    order: list[int] = []
    counted: list[bool] = []
    for shapes in sorted(groups):
        members = groups[shapes]
        padding = -len(members) % batch_size
        order += [*members, *padding * members[-1:]]
        counted += [*len(members) * [True], *padding * [False]]
    return Plan(protocol, np.array(order, int), np.array(counted, bool), bounds)
