"""The function that an artefact computes: a model between its preprocessing and postprocessing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.export.interface import OUTPUTS, Options
from mobilevitv2_jax.images import target_size
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.functional import Arrays
from mobilevitv2_jax.models.resize import resize_bilinear
from mobilevitv2_jax.models.tasks import (
    MobileViTV2ForImageClassification,
    MobileViTV2ForSemanticSegmentation,
)
from mobilevitv2_jax.processing import MobileViTImageProcessor

MULTIPLE = 32
"""Of height and width where both are open: the largest output stride."""

Resize = Callable[[Array, tuple[Any, ...]], Array]
"""Takes maps [batch, height, width, channels] and their new height and width."""

resize_plain: Resize = functools.partial(resize_bilinear, align_corners=False)
"""As `post_process_semantic_segmentation` does."""

STEM = "backbone.stem.convolution.kernel"

_METHODS = {0: "nearest", 1: "lanczos3", 2: "linear", 3: "cubic"}
"""Filters of Pillow, by its numbers, that `jax.image.resize` has, too."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What is exported.

    Attributes:
        run: takes weights and a batch, and returns the outputs: pure, to be traced.
        weights: by path.
        input: the name of the input.
        shape: of the input, [batch, height, width, 3]; None where it is open.
        dtype: of the input: "float32", or "uint8" where it is pictures.
        outputs: names of the outputs.
        labels: names of the classes.
        derivative: whether the artefact carries its derivative by the input.
        multiple: height and width are multiples of it where they are open.
    """

    run: Callable[[Arrays, Array], tuple[Array, ...]]
    weights: Arrays
    input: str
    shape: tuple[int | None, int | None, int | None, int]
    dtype: str
    outputs: tuple[str, ...]
    labels: tuple[str, ...]
    derivative: bool = False
    multiple: int = MULTIPLE


def task_of(model: Any) -> str:
    """Returns "classification" or "segmentation".

    Raises:
        ConfigError: if the model has no head, or takes other than three channels.
    """
    tasks = {
        MobileViTV2ForImageClassification: "classification",
        MobileViTV2ForSemanticSegmentation: "segmentation",
    }
    if type(model) not in tasks or not model.config.num_labels:
        raise ConfigError("these weights have no head: there is nothing to export")
    if model.config.num_channels != 3:
        raise ConfigError(
            f"the model must take 3 channels, pictures in RGB, got {model.config.num_channels}"
        )
    return tasks[type(model)]


def fixed_rules(
    processor: MobileViTImageProcessor, size: tuple[int, int] | None, task: str
) -> MobileViTImageProcessor:
    """Returns an image processor all of whose results have one size.

    A classifier sees the centre, as its processor crops it, at any size in the same proportion;
    a segmentation sees the whole picture, squashed.

    Args:
        processor: that of the weights.
        size: height and width; what the processor leads to by default.
        task: of the model.
    """
    if size is None:
        if processor.do_center_crop:
            size = processor.crop_size["height"], processor.crop_size["width"]
        elif "height" in processor.size:
            size = processor.size["height"], processor.size["width"]
        else:
            size = (processor.size["shortest_edge"],) * 2
    height, width = size
    if task == "segmentation" or "height" in processor.size or not processor.do_center_crop:
        whole = {"height": height, "width": width}
        return dataclasses.replace(processor, do_resize=True, size=whole, do_center_crop=False)
    crop = processor.crop_size
    share = processor.size["shortest_edge"] / min(crop.values()) if processor.do_resize else 1
    return dataclasses.replace(
        processor,
        do_resize=True,
        size={"shortest_edge": round(share * max(size))},
        crop_size={"height": height, "width": width},
    )


def make_program(
    model: Any,
    processor: MobileViTImageProcessor,
    options: Options,
    resize: Resize,
) -> Program:
    """Returns the function that is exported, or that an artefact is compared with.

    Args:
        model: in evaluation mode.
        processor: of `fixed_rules`.
        options: checked.
        resize: how maps are brought to the size of what comes in.

    Raises:
        ConfigError: if the model cannot take the size, or has no such output.
    """
    task = task_of(model)
    output = options.output or OUTPUTS[task][0]
    if output in ("probabilities", "top_k") and model.config.is_regression:
        raise ConfigError(f"--output={output} is for classes, and this model gives values")
    if output not in OUTPUTS[task]:
        allowed = ", ".join(OUTPUTS[task])
        raise ConfigError(f"--output must be one of {allowed} for {task}, got {output!r}")
    graphs, parameters, statistics = functional.split(model)
    weights = {**parameters, **statistics}
    if options.preprocess and processor.do_flip_channel_order:
        # The channels of the first kernel are turned round, in place of every picture's.
        weights[STEM] = jnp.asarray(np.asarray(weights[STEM])[:, :, ::-1])
    before = _before(processor, options)
    after = _after(model.config.problem_type, output, options.top_k, resize)

    def run(weights: Arrays, images: Array) -> tuple[Array, ...]:
        merged = functional.merge(
            graphs.evaluation,
            {path: weights[path] for path in parameters},
            {path: weights[path] for path in statistics},
        )
        logits = merged(before(images), return_dict=True).logits.astype(jnp.float32)
        return after(logits, images.shape[1:3])

    program = Program(
        run,
        weights,
        "pixels" if options.preprocess else "pixel_values",
        _shape(processor, options),
        "uint8" if options.preprocess else "float32",
        {"top_k": ("probabilities", "classes")}.get(output, (output,)),
        tuple(model.config.id2label.values()),
        options.vjp,
        _multiple(model.config),
    )
    _check_size(program, options, seen_size(processor))
    return program


def _multiple(config: MobileViTV2Config) -> int:
    """Returns what divides open sides; under the rule "drop" no map may have half a patch."""
    return max(
        MULTIPLE, config.patch_size * config.output_stride * (config.odd_size_rule == "drop")
    )


def _shape(
    processor: MobileViTImageProcessor, options: Options
) -> tuple[int | None, int | None, int | None, int]:
    if options.any_size:
        return options.batch, None, None, 3
    return options.batch, *(options.from_size or seen_size(processor)), 3


def seen_size(processor: MobileViTImageProcessor) -> tuple[int, int]:
    """Returns the height and width that a processor of `fixed_rules` leads to."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    return size["height"], size["width"]


def _check_size(program: Program, options: Options, seen: tuple[int, int]) -> None:
    """Traces the program once, which costs little and shows what would fail later."""
    if options.any_size and any(side % program.multiple for side in seen):
        raise ConfigError(
            f"--any-size takes sides in multiples of {program.multiple}, and pictures come in at "
            f"{seen[0]}x{seen[1]}: give a --size that is one"
        )
    sides = [side or 2 * program.multiple for side in program.shape[1:]]
    example = jax.ShapeDtypeStruct((program.shape[0] or 2, *sides), program.dtype)
    try:
        jax.eval_shape(program.run, program.weights, example)
    except (TypeError, ValueError) as error:
        size = f"{sides[0]}x{sides[1]}"
        raise ConfigError(f"the model cannot take images of {size}: {error}") from error


# ---- Before the model ------------------------------------------------------------------------


def _before(
    processor: MobileViTImageProcessor, options: Options
) -> Callable[[Num[Array, "batch height width 3"]], Float[Array, "batch rows columns 3"]]:
    """Returns what brings pictures in; the order of channels is the first kernel's affair."""
    if not options.preprocess:
        return lambda images: images
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, deviation = (
        (np.float32(processor.image_mean), np.float32(processor.image_std))
        if processor.do_normalize
        else (np.zeros(3, np.float32), np.ones(3, np.float32))
    )
    resize_crop = _resize_crop(processor, options.from_size) if options.from_size else None

    def before(pixels: Array) -> Array:
        x = pixels.astype(jnp.float32)
        if resize_crop is not None:
            x = resize_crop(x)
        x = x * np.float32(factor)
        return (x - mean) / deviation if mean.any() or (deviation != 1).any() else x

    return before


def _resize_crop(
    processor: MobileViTImageProcessor, source: tuple[int, int]
) -> Callable[[Array], Array]:
    """Returns Pillow's antialiased resizing and the crop, as a product with a matrix per axis.

    Bicubic weights overshoot: Pillow rounds to bytes after each axis, which is clipped only here.

    Raises:
        ConfigError: for a filter that is not there, or a crop larger than the image.
    """
    if processor.resample not in _METHODS:
        raise ConfigError(
            f"--from-size has no filter for resample={processor.resample}: export without it, "
            "and resize before"
        )
    resized = target_size(*source, processor.size)
    seen = seen_size(processor)
    if seen[0] > resized[0] or seen[1] > resized[1]:
        raise ConfigError(
            f"--from-size: pictures are resized to {resized}, which the crop of {seen} exceeds"
        )
    rows, columns = (
        _filter_matrix(before, after, keep, _METHODS[processor.resample])
        for before, after, keep in zip(source, resized, seen, strict=True)
    )

    def resize_crop(x: Array) -> Array:
        precise = functools.partial(jnp.tensordot, precision=jax.lax.Precision.HIGHEST)
        x = jnp.clip(jnp.moveaxis(precise(columns, x, axes=(1, 2)), 0, 2), 0, 255)
        x = jnp.moveaxis(precise(rows, x, axes=(1, 1)), 0, 1)
        return jnp.clip(x, 0, 255)

    return resize_crop


def _filter_matrix(source: int, target: int, keep: int, method: str) -> np.ndarray:
    """Returns the [keep, source] matrix that resizes an axis and keeps its middle."""
    identity = jnp.eye(source, dtype=jnp.float32)
    matrix = np.asarray(jax.image.resize(identity, (target, source), method, antialias=True))
    start = (target - keep) // 2
    return matrix[start : start + keep]


# ---- Behind it -------------------------------------------------------------------------------


def _after(
    problem: str | None, output: str, top_k: int, resize: Resize
) -> Callable[[Array, tuple[Any, ...]], tuple[Array, ...]]:
    """Returns what makes the outputs of logits, and of the size of what came in."""
    several = problem == "multi_label_classification"
    probabilities = jax.nn.sigmoid if several else jax.nn.softmax

    def top(x: Array, size: tuple[Any, ...]) -> tuple[Array, ...]:
        values, classes = jax.lax.top_k(probabilities(x), min(top_k, x.shape[-1]))
        return values, classes

    return {
        "logits": lambda x, size: (x,),
        "probabilities": lambda x, size: (probabilities(x),),
        "top_k": top,
        "classes": lambda x, size: (jnp.argmax(resize(x, size), -1).astype(jnp.int32),),
    }[output]
