"""Scenes of handwritten digits, to be segmented: eleven classes, nothing to download.

Each scene lays one to four of scikit-learn's real digits (see `digits.py`) over a textured
background. As in Pascal VOC, 0 is background and a band of 255 around every object belongs to
no class. Scenes of the held-out split show held-out digits only.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from mobilevitv2_jax.data import digits
from mobilevitv2_jax.data.sources import ArraySource

SPLITS = digits.SPLITS

SCENES = {"train": 1200, "test": 240}
VOID = 255
_SIDE = (144, 208)  # height and width, in pixels
_DIGIT = (0.42, 0.62)  # side of a digit's square over the scene's short side
_BAND = 3  # width of the void band, in pixels


@dataclasses.dataclass(frozen=True, eq=False)
class DigitScenes:
    """A `Source` of scenes, always the same by index.

    A scene is composed when it is first asked for, and kept: 120 kB, and 10 ms of a core that a
    training step needs as well.

    Attributes:
        split: "train" or "test".
        digits: the digits of that split.
    """

    split: str
    digits: ArraySource
    _kept: dict[int, dict[str, Any]] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    name = "digit_scenes"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background, then the ten digits."""
        return ("background", *self.digits.class_names)

    @property
    def fingerprint(self) -> str:
        """Name, split and length."""
        return f"{self.name}/{self.split}/{len(self)}"

    def __len__(self) -> int:
        return SCENES[self.split]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self._kept:
            self._kept[index] = self._composed(index)
        return dict(self._kept[index])

    def _composed(self, index: int) -> dict[str, Any]:
        # The split is part of the seed: held-out scenes share no background either.
        rng = np.random.default_rng((SPLITS.index(self.split), index))
        height, width = rng.integers(*_SIDE, size=2)
        image = _background(height, width, rng)
        label = np.zeros((height, width), np.uint8)
        taken = np.zeros((height, width), bool)
        for _ in range(rng.integers(1, 5)):
            self._place(image, label, taken, rng)
        example = {"image": np.rint(image).clip(0, 255).astype(np.uint8), "label": label}
        for array in example.values():
            array.setflags(write=False)
        return example

    def _place(
        self, image: np.ndarray, label: np.ndarray, taken: np.ndarray, rng: np.random.Generator
    ) -> None:
        """Draws one digit where there is room for it, if there is."""
        side = int(min(label.shape) * rng.uniform(*_DIGIT))
        example = self.digits[int(rng.integers(len(self.digits)))]
        ink = cv2.resize(
            example["image"][..., 0].astype(np.float32) / 255,
            (side, side),
            interpolation=cv2.INTER_CUBIC,
        ).clip(0, 1)
        # Digits touch the edges of their squares: make room for the void band around them.
        ink = cv2.copyMakeBorder(ink, *4 * (_BAND,), cv2.BORDER_CONSTANT, value=0)
        side = len(ink)
        colour = image.mean((0, 1)) + 110 * rng.choice([-1, 1]) + rng.uniform(-40, 40, 3)
        shape = _silhouette(ink)
        band = cv2.subtract(cv2.dilate(shape, _disc(_BAND)), cv2.erode(shape, _disc(_BAND)))
        for _ in range(10):
            top, left = (int(rng.integers(size - side + 1)) for size in label.shape)
            window = np.s_[top : top + side, left : left + side]
            if taken[window][(shape | band) > 0].any():
                continue
            alpha = ink[..., None]
            image[window] = (1 - alpha) * image[window] + alpha * colour
            label[window][shape > 0] = 1 + example["label"]
            label[window][band > 0] = VOID
            taken[window] |= (shape | band) > 0
            return


def load(split: str, directory: str = "") -> DigitScenes:
    """Returns the scenes of a split.

    Args:
        split: one of `SPLITS`.
        directory: unused; the digits come with scikit-learn.
    """
    return DigitScenes(split, digits.load(split))


def _background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a texture: coloured clouds of several sizes, with a grain."""
    image = np.zeros((height, width, 3), np.float32)
    image += rng.uniform(60, 195, 3).astype(np.float32)
    for cells, strength in ((3, 35.0), (9, 20.0), (27, 10.0)):
        clouds = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
    return image + rng.normal(0, 6, image.shape).astype(np.float32)


def _disc(radius: int) -> UInt8[np.ndarray, "size size"]:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _silhouette(ink: np.ndarray) -> UInt8[np.ndarray, "side side"]:
    """Returns the outline of a digit, filled: strokes, and the gaps that they enclose."""
    margin = len(ink) // 6
    strokes = cv2.copyMakeBorder(
        (ink > 0.35).astype(np.uint8), *4 * (margin,), cv2.BORDER_CONSTANT, value=0
    )
    closed = cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, _disc(margin))
    return closed[margin:-margin, margin:-margin] * np.uint8(255)
