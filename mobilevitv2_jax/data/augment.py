"""Transforms: one example in, one example out; the image leaves as uint8 [size, size, 3].

All are picklable, for the loader's processes, and draw only from the generator they are given.
Scaling to [0, 1] happens on the device: four times fewer bytes travel there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import cv2
import ml_collections
import numpy as np

from mobilevitv2_jax.data.image import center_crop, resize, resize_short_side
from mobilevitv2_jax.data.randaugment import OPERATIONS

Example = dict[str, Any]
"""Holds "image", uint8 RGB [height, width, 3]; transforms leave the other entries alone."""

STRONGEST = 30
"""The largest magnitude of RandAugment: there are 31 of them."""

Step = Callable[[Example, np.random.Generator], Example]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Resizes the short side and cuts out the central square.

    An odd margin is halved to the lower pixel, as in the image processor that goes with the
    weights; torchvision halves it to the even one.

    Attributes:
        resize: short side before the crop, in pixels; at least `crop`.
        crop: side of the square, in pixels.
        interpolation: "bilinear" or "bicubic".
    """

    resize: int
    crop: int
    interpolation: str

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> Example:
        """Returns the example with its image transformed; nothing is drawn from `rng`."""
        image = resize_short_side(example["image"], self.resize, self.interpolation)
        return {**example, "image": np.ascontiguousarray(center_crop(image, self.crop))}


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """Cuts out a random box and resizes it to a square, as torchvision's transform does.

    Attributes:
        size: side of the square, in pixels.
        scale: smallest and largest share of the image's area that the box covers.
        ratio: smallest and largest width over height of the box; drawn log-uniformly.
        interpolation: "bilinear" or "bicubic".
        fast: resize without antialiasing.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: str
    fast: bool = False

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example with its image transformed."""
        image = example["image"]
        top, left, height, width = self.box(image.shape[0], image.shape[1], rng)
        cut = image[top : top + height, left : left + width]
        square = (self.size, self.size)
        return {**example, "image": resize(cut, square, self.interpolation, self.fast)}

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draws the top, left, height and width of a box within an image of the given size."""
        low, high = self.ratio
        for _ in range(10):
            box_height, box_width = _draw_sides(height * width, self.scale, self.ratio, rng)
            if 0 < box_width <= width and 0 < box_height <= height:
                top = int(rng.integers(height - box_height + 1))
                left = int(rng.integers(width - box_width + 1))
                return top, left, box_height, box_width
        # No box fitted: the largest central one whose ratio is allowed.
        box_height = min(height, max(1, round(width / low)))
        box_width = min(width, max(1, round(height * high)))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _draw_sides(
    area: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int]:
    """Draws height and width of a box: its share of the area, then log-uniformly its ratio."""
    box_area = area * rng.uniform(*scale)
    width_over_height = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    width = round(math.sqrt(box_area * width_over_height))
    return round(math.sqrt(box_area / width_over_height)), width


@dataclasses.dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors left and right.

    Attributes:
        probability: of mirroring an image.
    """

    probability: float

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example, its image mirrored or not."""
        if rng.random() >= self.probability:
            return example
        return {**example, "image": cv2.flip(example["image"], 1)}


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Applies operations drawn with equal chances, one after the other, as torchvision does.

    Attributes:
        operations: number of operations.
        magnitude: of those that have one, in [0, 30].
    """

    operations: int
    magnitude: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example with its image transformed."""
        image, names = example["image"], tuple(OPERATIONS)
        for _ in range(self.operations):
            apply, signed = OPERATIONS[names[rng.integers(len(names))]]
            level = self.magnitude / STRONGEST
            image = apply(image, -level if signed and rng.integers(2) else level)
        return {**example, "image": image}


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Blackens a random box (arXiv 1708.04896), with torchvision's sizes by default.

    Attributes:
        probability: of erasing anything.
        scale: smallest and largest share of the image's area that the box covers.
        ratio: smallest and largest of the box's ratios of sides; drawn log-uniformly.
    """

    probability: float
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example, a box of its image black or not."""
        if rng.random() >= self.probability:
            return example
        height, width = example["image"].shape[:2]
        for _ in range(10):
            box_height, box_width = _draw_sides(height * width, self.scale, self.ratio, rng)
            if box_height < height and box_width < width:
                top = int(rng.integers(height - box_height + 1))
                left = int(rng.integers(width - box_width + 1))
                image = example["image"].copy()
                image[top : top + box_height, left : left + box_width] = 0
                return {**example, "image": image}
        return example


@dataclasses.dataclass(frozen=True)
class Train:
    """Applies one step after the other, all drawing from the same generator.

    Attributes:
        steps: the transforms, in order.
    """

    steps: tuple[Step, ...]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example after all steps."""
        for step in self.steps:
            example = step(example, rng)
        return example


def train_transform(config: ml_collections.ConfigDict) -> Train:
    """Returns the augmentation that `config.augment` and `config.data.image_size` describe."""
    c, size = config.augment, config.data.image_size
    crop: Step = Evaluate(size, size, c.interpolation)
    if c.random_resized_crop:
        scale, ratio = tuple(c.scale), tuple(c.ratio)
        crop = RandomResizedCrop(size, scale, ratio, c.interpolation, c.fast_resize)
    return Train(
        (
            crop,
            HorizontalFlip(c.horizontal_flip),
            RandAugment(c.randaugment, c.randaugment_magnitude),
            RandomErasing(c.random_erasing),
        )
    )


def evaluation_transform(config: ml_collections.ConfigDict) -> Evaluate:
    """Returns the transform that `config.eval` describes."""
    return Evaluate(config.eval.resize, config.eval.crop, config.eval.interpolation)
