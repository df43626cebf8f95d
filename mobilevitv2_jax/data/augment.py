"""Transforms: one example in, one example out; the image leaves as uint8 [size, size, 3].

All are picklable, for the loader's processes, and draw only from the generator they are given.
Scaling to [0, 1] happens on the device: four times fewer bytes travel there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from mobilevitv2_jax.data.image import center_crop, resize, resize_short_side

Example = dict[str, Any]
"""Holds "image", uint8 RGB [height, width, 3]; transforms leave the other entries alone."""

Step = Callable[[Example, np.random.Generator], Example]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Resizes the short side and cuts out the central square.

    Attributes:
        resize: short side before the crop, in pixels.
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
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: str

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example with its image transformed."""
        image = example["image"]
        top, left, height, width = self.box(image.shape[0], image.shape[1], rng)
        cut = image[top : top + height, left : left + width]
        return {**example, "image": resize(cut, (self.size, self.size), self.interpolation)}

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draws the top, left, height and width of a box within an image of the given size."""
        low, high = self.ratio
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
            box_width = round(math.sqrt(area * ratio))
            box_height = round(math.sqrt(area / ratio))
            if 0 < box_width <= width and 0 < box_height <= height:
                top = int(rng.integers(height - box_height + 1))
                left = int(rng.integers(width - box_width + 1))
                return top, left, box_height, box_width
        # No box fitted: the largest central one whose ratio is allowed.
        box_height = min(height, max(1, round(width / low)))
        box_width = min(width, max(1, round(height * high)))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


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
        return {**example, "image": np.ascontiguousarray(example["image"][:, ::-1])}


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
        crop = RandomResizedCrop(size, tuple(c.scale), tuple(c.ratio), c.interpolation)
    return Train((crop, HorizontalFlip(c.horizontal_flip)))


def evaluation_transform(config: ml_collections.ConfigDict) -> Evaluate:
    """Returns the transform that `config.eval` describes."""
    return Evaluate(config.eval.resize, config.eval.crop, config.eval.interpolation)
