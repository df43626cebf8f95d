"""The checks of an experiment's values that need neither data nor devices: see `config.py`."""

from __future__ import annotations

import math
import sys
from typing import Any

import ml_collections

from mobilevitv2_jax.config import Duration, get_value, model_config
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.models.config import nearest

_BEST_METRICS = {
    "classification": ("eval_ema/top1", "eval/top1", "eval_ema/top5", "eval/top5"),
    "segmentation": ("eval_ema_squashed/miou", "eval_squashed/miou"),
}

_DURATIONS = ("schedule.total", "schedule.warmup", "eval.every", "checkpoint.every", "log.every")
_AT_LEAST_ONE = (
    "data.batch_size",
    "data.image_size",
    "eval.batch_size",
    "eval.resize",
    "eval.crop",
    "eval.pictures_from",
    "optimizer.accumulation_steps",
    "optimizer.max_skipped",
    "mesh.fsdp",
    "profile.steps",
)
_AT_LEAST_ZERO = (
    "seed",
    "augment.rotation",
    "augment.randaugment",
    "augment.mixup",
    "augment.cutmix",
    "data.threads",
    "data.max_corrupt",
    "optimizer.weight_decay",
    "optimizer.gradient_clip",
    "schedule.warmup_learning_rate",
    "schedule.learning_rate",
    "schedule.min_learning_rate",
    "optimizer.epsilon",
    "checkpoint.keep_best",
    "mesh.devices",
    "mesh.fsdp_smallest_bytes",
    "profile.start",
    "faults.step_timeout",
)
_SHARES = (  # in [0, 1]
    "augment.horizontal_flip",
    "augment.random_erasing",
    "augment.largest_class",
    "augment.blur",
    "augment.photometric",
    "ema.momentum",
)
# Augmentations of one task, with the values that change nothing: in the other they would part an
# image from its map of classes, or have no map to go by.
_OF_ONE_TASK = {
    "segmentation": {
        "augment.largest_class": 1.0,
        "augment.blur": 0.0,
        "augment.photometric": 0.0,
        "augment.rotation": 0.0,
    },
    "classification": {
        "augment.randaugment": 0,
        "augment.random_erasing": 0.0,
        "augment.mixup": 0.0,
        "augment.cutmix": 0.0,
    },
}
_BELOW_ONE = ("optimizer.label_smoothing", "optimizer.momentum")  # in [0, 1)
_CHOICES = {
    "task": tuple(_BEST_METRICS),
    "data.channel_order": ("rgb", "bgr"),
    "optimizer.name": ("adamw", "sgd"),
    "augment.interpolation": ("bilinear", "bicubic"),
    "eval.interpolation": ("bilinear", "bicubic"),
}


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every value that can be checked without data or devices.

    Raises:
        ConfigError: naming the key, what is allowed, and the value.
    """
    model_config(config)
    _check_durations(config)
    _check_ranges(config)
    _check_batches(config)
    _check_images(config)
    _check_augmentation(config)
    _check_choices(config)


def _check_durations(config: ml_collections.ConfigDict) -> None:
    optional = ("schedule.stop_at",) if config.schedule.stop_at else ()
    for key in (*_DURATIONS, *optional):
        duration = Duration.parse(get_value(config, key), f"config.{key}")
        if duration.value <= 0 and key != "schedule.warmup":
            _refuse(key, "longer than nothing", get_value(config, key))
        if not math.isfinite(duration.value):
            _refuse(key, "finite", get_value(config, key))


def _check_ranges(config: ml_collections.ConfigDict) -> None:
    for key in _AT_LEAST_ONE:
        if get_value(config, key) < 1:
            _refuse(key, "at least 1", get_value(config, key))
    for key in _AT_LEAST_ZERO:
        if not 0 <= get_value(config, key) < math.inf:
            _refuse(key, "at least 0 and finite", get_value(config, key))
    for key in _SHARES:
        if not 0 <= get_value(config, key) <= 1:
            _refuse(key, "in [0, 1]", get_value(config, key))
    for key in _BELOW_ONE:
        if not 0 <= get_value(config, key) < 1:
            _refuse(key, "in [0, 1)", get_value(config, key))
    if not 0 < config.optimizer.layer_decay <= 1:
        _refuse("optimizer.layer_decay", "in (0, 1]", config.optimizer.layer_decay)
    if config.data.workers < -1:
        _refuse("data.workers", "at least 0, or -1 for what the cores allow", config.data.workers)
    betas = config.optimizer.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        _refuse("optimizer.betas", "two numbers in [0, 1)", betas)
    if config.checkpoint.keep_latest < 2:
        # While the newest is not yet known to be whole, the one before it has to be there.
        _refuse("checkpoint.keep_latest", "at least 2", config.checkpoint.keep_latest)


def _check_batches(config: ml_collections.ConfigDict) -> None:
    batch_size, parts = config.data.batch_size, config.optimizer.accumulation_steps
    if batch_size % parts:
        allowed = f"a divisor of data.batch_size, which is {batch_size}"
        _refuse("optimizer.accumulation_steps", allowed, parts)
    group_size = config.model.batch_norm_group_size
    if group_size and batch_size // parts % group_size:
        _refuse(
            "model.batch_norm_group_size",
            "a divisor of data.batch_size / optimizer.accumulation_steps, which is "
            f"{batch_size // parts}",
            group_size,
        )


def _check_images(config: ml_collections.ConfigDict) -> None:
    if config.model.num_channels != 3:
        _refuse("model.num_channels", "3, for images are read as RGB", config.model.num_channels)
    for key, meaning, largest in (
        ("augment.scale", "two shares with 0 < smallest <= largest <= 1", 1.0),
        ("augment.ratio", "two finite ratios with 0 < smallest <= largest", sys.float_info.max),
    ):
        value = get_value(config, key)
        if len(value) != 2 or not 0 < value[0] <= value[1] <= largest:
            _refuse(key, meaning, value)
    low, high = config.augment.short_side
    if not 0 < low <= high <= config.augment.long_side:
        allowed = f"two sizes with 0 < smallest <= largest <= {config.augment.long_side}"
        _refuse("augment.short_side", f"{allowed} (augment.long_side)", (low, high))
    if config.eval.crop > config.eval.resize:
        _refuse(
            "eval.crop", f"at most eval.resize, which is {config.eval.resize}", config.eval.crop
        )


def _check_augmentation(config: ml_collections.ConfigDict) -> None:
    if not 0 <= config.augment.randaugment_magnitude <= 30:
        magnitude = config.augment.randaugment_magnitude
        _refuse("augment.randaugment_magnitude", "in [0, 30]", magnitude)
    for task, neutral in _OF_ONE_TASK.items():
        for key, value in neutral.items():
            if config.task != task and get_value(config, key) != value:
                _refuse(key, f"{value} for {config.task}", get_value(config, key))
    for key, meaning, smallest in (
        ("data.mean", "three finite numbers", -math.inf),
        ("data.std", "three finite numbers above 0", 0),
    ):
        value = get_value(config, key)
        if len(value) != 3 or not all(smallest < number < math.inf for number in value):
            _refuse(key, meaning, value)


def _check_choices(config: ml_collections.ConfigDict) -> None:
    best = _BEST_METRICS.get(config.task, ())
    for name, choices in {**_CHOICES, "checkpoint.best_metric": best}.items():
        value = get_value(config, name)
        if value not in choices:
            _refuse(name, "one of " + ", ".join(choices), value, nearest(value, choices))


def _refuse(key: str, allowed: str, value: Any, hint: str = "") -> None:
    raise ConfigError(f"config.{key} must be {allowed}, got {value!r}{hint}")
