"""Joint transforms of an image and its map of classes; see `augment.py` for what they share.

Images are resized with a filter and filled with 0, maps with the nearest neighbour and 255:
no transform invents a class.
"""

from __future__ import annotations

import dataclasses

import ml_collections
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mobilevitv2_jax.data.augment import Example, Step, Train
from mobilevitv2_jax.data.image import resize

VOID = 255
"""Label of pixels without a class."""


def resize_both(example: Example, size: tuple[int, int], interpolation: str) -> Example:
    """Resizes image and map to (height, width)."""
    image = resize(example["image"], size, interpolation)
    return {**example, "image": image, "label": resize_nearest(example["label"], size)}


def resize_nearest(
    label: UInt8[np.ndarray, "height width"], size: tuple[int, int]
) -> UInt8[np.ndarray, "rows columns"]:
    """Resizes a map of classes: every pixel takes the class at its centre."""
    rows, columns = size
    picture = Image.fromarray(label).resize((columns, rows), Image.Resampling.NEAREST)
    return np.asarray(picture)


@dataclasses.dataclass(frozen=True)
class Squash:
    """Resizes to a square, whatever the aspect.

    Attributes:
        size: side of the square, in pixels.
        interpolation: of the image.
    """

    size: int
    interpolation: str

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> Example:
        """Returns the example resized; nothing is drawn from `rng`."""
        return resize_both(example, (self.size, self.size), self.interpolation)


@dataclasses.dataclass(frozen=True)
class RandomShortSide:
    """Resizes to a random short side, aspect kept.

    Source: `RandomShortSizeResize` of ml-cvnets `data/transforms/image_pil.py`.

    Attributes:
        smallest: of the short sides, in pixels.
        largest: of the short sides, in pixels.
        long_side: the most that the long side may be.
        interpolation: of the image.
    """

    smallest: int
    largest: int
    long_side: int
    interpolation: str

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example resized."""
        height, width = example["label"].shape
        short = int(rng.integers(self.smallest, self.largest + 1))
        scale = min(short / min(height, width), self.long_side / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return resize_both(example, size, self.interpolation)


@dataclasses.dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors left and right.

    Attributes:
        probability: of mirroring.
    """

    probability: float

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example, mirrored or not."""
        if rng.random() >= self.probability:
            return example
        mirrored = {name: example[name][:, ::-1] for name in ("image", "label")}
        return {**example, **mirrored}


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Fills up at the bottom and the right to a square, then cuts out a random square.

    Attributes:
        size: side of the square, in pixels.
    """

    size: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example cropped."""
        height, width = example["label"].shape
        fill = ((0, max(self.size - height, 0)), (0, max(self.size - width, 0)))
        image = np.pad(example["image"], (*fill, (0, 0)))
        label = np.pad(example["label"], fill, constant_values=VOID)
        top, left = (int(rng.integers(side - self.size + 1)) for side in label.shape)
        window = np.s_[top : top + self.size, left : left + self.size]
        return {
            **example,
            "image": np.ascontiguousarray(image[window]),
            "label": np.ascontiguousarray(label[window]),
        }


def train_transform(config: ml_collections.ConfigDict) -> Train:
    """Returns the augmentation that `config.augment` and `config.data.image_size` describe."""
    c = config.augment
    smallest, largest = c.short_side
    steps: tuple[Step, ...] = (
        RandomShortSide(smallest, largest, c.long_side, c.interpolation),
        HorizontalFlip(c.horizontal_flip),
        RandomCrop(config.data.image_size),
    )
    return Train(steps)


def evaluation_transform(config: ml_collections.ConfigDict) -> Squash:
    """Returns the transform of the loop's own evaluation, `config.eval.crop` pixels a side."""
    return Squash(config.eval.crop, config.eval.interpolation)
