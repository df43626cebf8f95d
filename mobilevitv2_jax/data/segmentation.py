"""Joint transforms of an image and its map of classes; see `augment.py` for what they share.

Images are resized with a filter and filled with 0, maps with the nearest neighbour and 255:
no transform invents a class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import ml_collections
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageFilter

from mobilevitv2_jax.data.augment import Example, Step, Train
from mobilevitv2_jax.data.image import resize

VOID = 255
"""Label of pixels without a class."""

# Ranges of the photometric distortion: factors, and the turn of the hue as a share of the circle.
_BRIGHTNESS = (0.875, 1.125)
_CONTRAST = (0.5, 1.5)
_SATURATION = (0.5, 1.5)
_HUE = (-0.05, 0.05)
_CROPS = 10  # tried for one in which no class is too large


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
        # The original cuts fractions off; a whole number may have come out a little smaller.
        size = (max(1, int(height * scale + 1e-6)), max(1, int(width * scale + 1e-6)))
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

    Source: `RandomCrop` of ml-cvnets `data/transforms/image_pil.py`, with `pad_if_needed`.

    Attributes:
        size: side of the square, in pixels.
        largest_class: a square is drawn again, up to ten times, unless every class covers less
            than this share of its pixels with a class; 1 takes the first.
    """

    size: int
    largest_class: float = 1.0

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example cropped."""
        height, width = example["label"].shape
        fill = ((0, max(self.size - height, 0)), (0, max(self.size - width, 0)))
        image = np.pad(example["image"], (*fill, (0, 0)))
        label = np.pad(example["label"], fill, constant_values=VOID)
        for _ in range(_CROPS):
            top, left = (int(rng.integers(side - self.size + 1)) for side in label.shape)
            window = np.s_[top : top + self.size, left : left + self.size]
            if self.largest_class == 1 or _largest_share(label[window]) < self.largest_class:
                break
        return {
            **example,
            "image": np.ascontiguousarray(image[window]),
            "label": np.ascontiguousarray(label[window]),
        }


def _largest_share(label: UInt8[np.ndarray, "height width"]) -> float:
    """Returns the share of the most frequent class in the pixels that have one."""
    counts = np.bincount(label.ravel(), minlength=VOID + 1)[:VOID]
    return counts.max() / max(counts.sum(), 1) or 1.0


@dataclasses.dataclass(frozen=True)
class Blur:
    """Blurs the image with a Gaussian whose deviation is up to a pixel.

    Attributes:
        probability: of blurring.
    """

    probability: float

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example, its image blurred or not."""
        if rng.random() >= self.probability:
            return example
        blurred = Image.fromarray(example["image"]).filter(ImageFilter.GaussianBlur(rng.random()))
        return {**example, "image": np.array(blurred)}


@dataclasses.dataclass(frozen=True)
class Photometric:
    """Changes brightness, saturation, hue, contrast (first or last), and the order of channels.

    Source: `PhotometricDistort` of ml-cvnets `data/transforms/image_pil.py`, whose operations are
    torchvision's on Pillow images.

    Attributes:
        probability: of each of the changes, drawn one by one.
    """

    probability: float

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example, its image distorted."""
        chosen = rng.random(6) < self.probability
        brighten, contrast_first, contrast, saturate, turn, permute = chosen
        steps: list[tuple[bool, Callable, tuple[float, float]]] = [
            (brighten, adjust_brightness, _BRIGHTNESS),
            (contrast and contrast_first, adjust_contrast, _CONTRAST),
            (saturate, adjust_saturation, _SATURATION),
            (turn, turn_hue, _HUE),
            (contrast and not contrast_first, adjust_contrast, _CONTRAST),
        ]
        picture = Image.fromarray(example["image"])
        for wanted, change, span in steps:
            if wanted:
                picture = change(picture, rng.uniform(*span))
        image = np.array(picture)
        if permute:
            image = np.ascontiguousarray(image[..., rng.permutation(image.shape[-1])])
        return {**example, "image": image}


def adjust_brightness(picture: Image.Image, factor: float) -> Image.Image:
    """Multiplies all pixels."""
    return ImageEnhance.Brightness(picture).enhance(factor)


def adjust_contrast(picture: Image.Image, factor: float) -> Image.Image:
    """Multiplies the distance of all pixels from the mean grey."""
    return ImageEnhance.Contrast(picture).enhance(factor)


def adjust_saturation(picture: Image.Image, factor: float) -> Image.Image:
    """Multiplies the distance of every pixel from its grey."""
    return ImageEnhance.Color(picture).enhance(factor)


def turn_hue(picture: Image.Image, share: float) -> Image.Image:
    """Turns the hue of all pixels by a share of the circle, in [-0.5, 0.5]."""
    hue, saturation, value = picture.convert("HSV").split()
    turned = (np.asarray(hue, np.int32) + int(255 * share)).astype(np.uint8)  # modulo 256
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Rotates about the centre, the size kept; what comes in is black and void.

    Attributes:
        degrees: the most that is rotated by, either way.
    """

    degrees: float

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the example rotated."""
        angle = rng.uniform(-self.degrees, self.degrees)
        image, label = (Image.fromarray(example[name]) for name in ("image", "label"))
        return {
            **example,
            "image": np.array(image.rotate(angle, Image.Resampling.BILINEAR)),
            "label": np.array(label.rotate(angle, Image.Resampling.NEAREST, fillcolor=VOID)),
        }


def train_transform(config: ml_collections.ConfigDict) -> Train:
    """Returns the augmentation that `config.augment` and `config.data.image_size` describe.

    The order is that of ml-cvnets `data/datasets/segmentation/base_segmentation.py`.
    """
    c = config.augment
    smallest, largest = c.short_side
    steps: tuple[Step, ...] = (
        RandomShortSide(smallest, largest, c.long_side, c.interpolation),
        HorizontalFlip(c.horizontal_flip),
        RandomCrop(config.data.image_size, c.largest_class),
        Blur(c.blur),
        Photometric(c.photometric),
        Rotation(c.rotation),
    )
    return Train(steps)


def evaluation_transform(config: ml_collections.ConfigDict) -> Squash:
    """Returns the transform of the loop's own evaluation, `config.eval.crop` pixels a side."""
    return Squash(config.eval.crop, config.eval.interpolation)
