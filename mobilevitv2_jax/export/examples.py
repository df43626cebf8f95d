"""Real pictures, to compare an artefact on and to calibrate it with."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from sklearn.datasets import load_sample_images

from mobilevitv2_jax.data.augment import Example
from mobilevitv2_jax.data.loader import evaluation_batches, train_batches
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.export.interface import Options
from mobilevitv2_jax.images import to_array
from mobilevitv2_jax.processing import MobileViTImageProcessor
from mobilevitv2_jax.training.experiment import open_source
from mobilevitv2_jax.training.run_directory import read_config

_BATCH = 16
_TILE = 213  # pixels; two rows and three columns of a sample photograph, twice over
_PHOTOGRAPHS = "two photographs of scikit-learn in tiles"


@dataclasses.dataclass(frozen=True)
class Examples:
    """Pictures as an artefact takes them, before their numbers are scaled.

    Attributes:
        name: where they come from.
        pictures: RGB, of one size.
        labels: the class of each, or a map of classes of the pictures' size; None if unknown.
    """

    name: str
    pictures: UInt8[np.ndarray, "examples height width 3"]
    labels: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class _Fit:
    """Brings an example, with its map of classes, to the size that an artefact takes.

    Attributes:
        processor: that of the artefact, without scaling.
    """

    processor: MobileViTImageProcessor

    @classmethod
    def of(cls, processor: MobileViTImageProcessor, options: Options) -> _Fit:
        """Returns the transform for an image processor of `program.fixed_rules`."""
        processor = dataclasses.replace(
            processor,
            do_rescale=False,
            do_normalize=False,
            do_flip_channel_order=False,
            do_reduce_labels=False,
        )
        if options.from_size:
            size = dict(zip(("height", "width"), options.from_size, strict=True))
            processor = dataclasses.replace(
                processor, do_resize=True, size=size, do_center_crop=False
            )
        return cls(processor)

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> Example:
        """Returns the example with its image, and its map, in size; draws nothing."""
        maps = example["label"] if np.ndim(example["label"]) == 2 else None
        found = self.processor(example["image"], maps)
        label = example["label"] if maps is None else found["labels"][0].astype(np.uint8)
        return {**example, "image": found["pixel_values"][0], "label": label}


def scaled(processor: MobileViTImageProcessor, pictures: np.ndarray) -> np.ndarray:
    """Returns pictures as the model takes them: float32, in its range and order of channels."""
    found = processor(list(pictures), do_resize=False, do_center_crop=False, return_tensors="np")
    return np.ascontiguousarray(found["pixel_values"], np.float32)


def held_out(run: str | None, processor: MobileViTImageProcessor, options: Options) -> Examples:
    """Returns what an artefact is compared on.

    Args:
        run: the run directory that the weights are from, if they are: its held-out set.
        processor: of `program.fixed_rules`.
        options: their `images` go before all others.
    """
    fit = _Fit.of(processor, options)
    if options.images is not None:
        pictures = _pictures(options.images, fit)
        return Examples(f"{len(pictures)} pictures", np.stack(pictures[: options.examples]), None)
    if run is None:
        tiles = itertools.islice(_tiles(), options.examples)
        return Examples(_PHOTOGRAPHS, np.stack([fit(x)["image"] for x in tiles]), None)
    config = read_config(run)
    source = open_source(config, config.data.eval_split)
    threads = config.data.threads
    with evaluation_batches(source, fit, batch_size=_BATCH, threads=threads) as batches:
        images, labels = zip(*itertools.islice(_counted(batches), options.examples), strict=True)
    return Examples(source.fingerprint, np.stack(images), np.stack(labels))


def calibration(
    run: str | None, processor: MobileViTImageProcessor, options: Options, count: int
) -> Iterator[np.ndarray]:
    """Yields representative inputs of an artefact, one picture at a time.

    Args:
        run: the run directory that the weights are from: its training data, by its loader.
        processor: of `program.fixed_rules`.
        options: their `images` go before all others.
        count: of pictures.
    """
    fit = _Fit.of(processor, options)
    pictures: Iterable[np.ndarray] = (
        _pictures(options.images, fit) if options.images is not None else _training(run or "", fit)
    )
    for picture in itertools.islice(pictures, count):
        yield picture[None] if options.preprocess else scaled(processor, picture[None])


def check_representative(run: str | None, options: Options) -> None:
    """Refuses a calibration for which nothing representative is known.

    Raises:
        ConfigError: if there are neither a run nor pictures.
    """
    if options.precision == "int8" and run is None and options.images is None:
        raise ConfigError(
            f"--quantize={options.precision} is calibrated with the training data of a run: for "
            "other weights, name representative pictures with --images"
        )


def _training(run: str, fit: _Fit) -> Iterator[np.ndarray]:
    config = read_config(run)
    source = open_source(config, config.data.train_split)
    with train_batches(
        source, fit, batch_size=_BATCH, seed=config.seed, threads=config.data.threads
    ) as batches:
        for batch in batches:
            yield from batch["image"]


def _counted(batches: Iterable[dict[str, np.ndarray]]) -> Iterator[tuple[np.ndarray, Any]]:
    for batch in batches:
        for image, label, mask in zip(batch["image"], batch["label"], batch["mask"], strict=True):
            if mask:
                yield image, label


def _pictures(paths: Iterable[str], fit: _Fit) -> list[np.ndarray]:
    return [fit({"image": to_array(path), "label": 0})["image"] for path in paths]


def _tiles() -> Iterator[Example]:
    """Yields overlapping squares of the sample photographs, 28 of each."""
    for photograph in load_sample_images().images:
        height, width = photograph.shape[:2]
        for top in np.linspace(0, height - _TILE, 4, dtype=int):
            for left in np.linspace(0, width - _TILE, 7, dtype=int):
                yield {"image": photograph[top : top + _TILE, left : left + _TILE], "label": 0}
