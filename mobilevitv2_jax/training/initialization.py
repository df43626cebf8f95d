"""The first weights of a run: new ones, or those of `config.init.pretrained` with their rules.

Weights give their accuracy only under the rules they were trained with. Hence these become the
run's: its config is resolved once, at its start, and from then on says all that there is to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from etils import epath
from flax import nnx

from mobilevitv2_jax.config import default_config, flatten, get_value, nearest_key
from mobilevitv2_jax.errors import ConfigError, UserError, WeightsError
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.tasks import MobileViTV2ForSemanticSegmentation
from mobilevitv2_jax.processing import MobileViTImageProcessor
from mobilevitv2_jax.training import run_directory
from mobilevitv2_jax.training.task import find_task
from mobilevitv2_jax.validation import validate
from mobilevitv2_jax.weights import formats, images, pretrained

# What makes the arrays of a backbone: nothing here can stand against the weights.
_SHAPE = (
    "width_multiplier",
    "num_channels",
    "expand_ratio",
    "conv_kernel_size",
    "n_attn_blocks",
    "base_attn_unit_dims",
    "ffn_multiplier",
)
_RULES = ("patch_size", "hidden_act", "layer_norm_eps", "dilation_rule", "odd_size_rule")
_HEAD = ("segmentation_head", "aspp_out_channels", "output_stride", "atrous_rates")

# Keys of which one alone would make no sense with the source's other: all of them stand or none.
_TOGETHER = (("eval.resize", "eval.crop"), ("data.mean", "data.std"))


def resolve(
    config: ml_collections.ConfigDict,
    directory: epath.PathLike | None = None,
    say: Callable[[str], None] | None = None,
    *,
    to_be_trained: bool = True,
) -> ml_collections.ConfigDict:
    """Returns a config with the rules of the weights that it begins with.

    A key stands if it is named in `init.keep` (what the command line sets is), or differs from
    the schema's default, for then the config has set it. A run that goes on has its rules in its
    own config, and does not need the weights again.

    Args:
        config: a validated experiment.
        directory: the run directory, if there may be one.
        say: is given a line for each key that is changed, and for each that stands.
        to_be_trained: False, for an evaluation, lets nothing stand but what `init.keep` names.

    Raises:
        ConfigError: if the weights cannot be read, or are those of another shape, or if
            `init.keep` names what is no key.
    """
    if not config.init.pretrained:
        return config
    kept = {key.strip() for key in config.init.keep.split(",")} - {""}
    known = flatten(config)
    for key in sorted(kept - known.keys()):
        raise ConfigError(f"config.init.keep names {key!r}{nearest_key(key, known)}")
    saved = _saved(config, directory)
    if saved is not None:
        rules = {key: get_value(saved, key) for key in _keys()}
    else:
        stored = _read(config)
        rules = _rules(stored, config.task)
        if say and stored.assumed_images:
            say(f"{config.init.pretrained}: {stored.assumed_images}")
    defaults = default_config()
    standing = {
        key
        for key in rules
        if key in kept or (to_be_trained and get_value(config, key) != get_value(defaults, key))
    }
    for group in _TOGETHER:
        if standing & set(group):
            standing |= set(group)
    resolved, lines = ml_collections.ConfigDict(config).unlock(), []
    for key, value in rules.items():
        own = get_value(config, key)
        if own == value:
            continue
        if key not in standing:
            resolved.update_from_flattened_dict({key: value})
            lines.append(f"{key} = {value!r}, as {config.init.pretrained} has it (was {own!r})")
        elif key.removeprefix("model.") in _SHAPE:
            raise ConfigError(
                f"config.{key} must be {value!r}, as {config.init.pretrained} has it, got {own!r}"
            )
        else:
            lines.append(f"{key} = {own!r} stands; {config.init.pretrained} has {value!r}")
    if say:
        for line in lines:
            say(line)
    validate(resolved)
    return resolved.lock()


def pretrained_model(
    config: ml_collections.ConfigDict,
    model: MobileViTV2Config,
    say: Callable[[str], None],
    *,
    to_be_trained: bool = True,
) -> nnx.Module:
    """Returns the model with the weights of `config.init.pretrained`.

    Of another number of classes, or of another task, the head is new, if it will be trained.

    Args:
        config: a resolved experiment.
        model: the model's configuration, with the classes of the data.
        say: is given a line on what was loaded, and of what is new.
        to_be_trained: False refuses weights that have no head for these classes.

    Raises:
        ConfigError: if the weights cannot be read, or do not fit.
    """
    stored = _read(config)
    try:
        found = pretrained.place(
            stored,
            find_task(config).model,
            model,
            ignore_mismatched_sizes=to_be_trained,
            rngs=nnx.Rngs(config.seed),
        )
    except WeightsError as error:
        raise ConfigError(f"config.init.pretrained: {error}") from None
    if found.new and not to_be_trained:
        raise ConfigError(
            f"config.init.pretrained: {stored.where} has no head for this data: {found.notes[0]}"
        )
    say(f"weights of {stored.where}")
    for line in found.notes:
        say(line)
    return found.model


def processor(config: ml_collections.ConfigDict) -> MobileViTImageProcessor:
    """Returns what brings images in as a resolved experiment does."""
    # A segmentation is judged on whole images, and so predicts for them.
    whole = config.task == "segmentation"
    rules = images.rules(
        config.eval.resize,
        None if whole else config.eval.crop,
        config.eval.interpolation,
        flip=config.data.channel_order == "bgr",
    )
    mean, deviation = list(config.data.mean), list(config.data.std)
    if any(mean) or set(deviation) != {1.0}:
        rules |= {"do_normalize": True, "image_mean": mean, "image_std": deviation}
    return MobileViTImageProcessor.from_dict(rules)


def _read(config: ml_collections.ConfigDict) -> formats.Stored:
    c = config.init
    checkpoint = int(c.checkpoint) if c.checkpoint.isdigit() else c.checkpoint
    try:
        return formats.read(c.pretrained, checkpoint, c.average)
    except UserError as error:
        raise ConfigError(f"config.init.pretrained: {error}") from None


def _saved(
    config: ml_collections.ConfigDict, directory: epath.PathLike | None
) -> ml_collections.ConfigDict | None:
    """Returns the config of the run that is to go on, if it began with the same weights."""
    if directory is None or not (epath.Path(directory) / "config.json").exists():
        return None
    saved = run_directory.read_config(directory)
    same = all(saved.init[name] == config.init[name] for name in saved.init if name != "keep")
    return saved if same else None


def _keys() -> list[str]:
    fields = (*_SHAPE, *_RULES, *_HEAD)
    return [*(f"model.{name}" for name in fields), *_image_rules(images.rules(1, 1, "bicubic"))]


def _rules(stored: formats.Stored, task: str) -> dict[str, Any]:
    """Returns the values that weights ask for, by key of an experiment."""
    names: tuple[str, ...] = (*_SHAPE, *_RULES)
    if (
        task == "segmentation"
        and pretrained.own_class(stored) is MobileViTV2ForSemanticSegmentation
    ):
        names += _HEAD
    rules = {f"model.{name}": getattr(stored.config, name) for name in names}
    schema = default_config()
    rules = {key: type(get_value(schema, key))(value) for key, value in rules.items()}
    return rules | _image_rules(stored.preprocessor)


def _image_rules(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what an image processor asks for, as far as an experiment has words for it."""
    own = MobileViTImageProcessor.from_dict(values)
    rules: dict[str, Any] = {
        "data.channel_order": "bgr" if own.do_flip_channel_order else "rgb",
        "data.mean": tuple(own.image_mean) if own.do_normalize else (0.0, 0.0, 0.0),
        "data.std": tuple(own.image_std) if own.do_normalize else (1.0, 1.0, 1.0),
    }
    for name, number in images.FILTERS.items():
        if own.resample == number:
            rules["eval.interpolation"] = name
    short = own.size.get("shortest_edge")
    crop = own.crop_size["height"] if own.do_center_crop else short
    if own.do_resize and short and crop and crop <= short:
        rules |= {"eval.resize": short, "eval.crop": crop, "data.image_size": crop}
    return rules
