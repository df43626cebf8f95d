"""To files of weights: `save_pretrained` of the models."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
from etils import epath

from mobilevitv2_jax import processing
from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.files import write_whole
from mobilevitv2_jax.models.config import WIDTHS, MobileViTV2Config, nearest
from mobilevitv2_jax.weights import formats, images, names, tensors, torch_writer

# Fields that timm and ml-cvnets have no word for in these models, or not in their files.
_FIXED = (
    "patch_size",
    "expand_ratio",
    "conv_kernel_size",
    "layer_norm_eps",
    "n_attn_blocks",
    "base_attn_unit_dims",
    "ffn_multiplier",
)


def save_pretrained(
    model: Any, directory: epath.PathLike, format: str = "hf", processor: Any = None
) -> list[str]:
    """Writes a model so that another project loads it strictly; arguments as in the models' method.

    Returns:
        What was changed so that the model computes the same there, a sentence each.

    Raises:
        WeightsError: if the format has no place for the model or for a rule of its images, or the
            directory holds weights of another form that would be read in the place of these.
    """
    if format not in _FORMATS:
        raise WeightsError(
            f"format must be one of {', '.join(_FORMATS)}, got {format!r}"
            f"{nearest(format, _FORMATS)}"
        )
    target = _FORMATS[format]
    rules = None
    if processor is not None:
        rules = dict(processor if isinstance(processor, Mapping) else processor.to_dict())
    without = () if target.auxiliary else ("auxiliary_head.",)
    _check(model, target)
    arrays, changes = names.state_dict(model, format, without=without), []
    if rules and rules.get("do_flip_channel_order") and not target.flips:
        _flip(model, format, arrays)
        rules["do_flip_channel_order"] = False
        changes.append(
            "channel order: the first convolution's input channels were flipped, so that it takes "
            f"RGB, as {target.name} does, instead of BGR"
        )
    for line in _differences(model, target):
        warnings.warn(line, stacklevel=3)
    config = model.config if target.auxiliary else model.config.replace(auxiliary_head=False)
    files = target.files(model, config, rules, arrays)
    path = epath.Path(directory)
    _check_place(path, files)
    path.mkdir(parents=True, exist_ok=True)
    if rules:
        write_whole(path / processing.FILE, _json(rules))
    for name, write in files.items():
        write(path / name)
    return changes


def _check(model: Any, target: _Format) -> None:
    """Refuses a model that the format cannot hold."""
    config = model.config
    if hasattr(model, "segmentation_head"):
        if not target.segments:
            raise WeightsError(f"{target.name} has no MobileViTV2 for segmentation")
        if config.segmentation_head == "pspnet" and not target.pyramid:
            raise WeightsError(
                f'segmentation_head="pspnet": {target.name} has none; format="cvnets" holds it'
            )
    if target.fixed:
        default = MobileViTV2Config()
        for name in _FIXED:
            if getattr(config, name) != getattr(default, name):
                raise WeightsError(
                    f"{name} must be {getattr(default, name)} in {target.name}'s model, got "
                    f"{getattr(config, name)}"
                )
        if config.hidden_act not in ("swish", "silu"):
            raise WeightsError(
                f"hidden_act must be swish in {target.name}'s model, got {config.hidden_act!r}"
            )
    if target.released and config.width_multiplier not in WIDTHS:
        raise WeightsError(
            f"width_multiplier must be one of {', '.join(map(str, WIDTHS))} in {target.name}, "
            f"which rounds channels otherwise, got {config.width_multiplier}"
        )


def _check_place(directory: epath.Path, files: Container[str]) -> None:
    """Refuses a directory whose old weights would go on to be read."""
    for name in tensors.USUAL:
        if name in files:
            return
        if (directory / name).exists():
            raise WeightsError(
                f"{directory / name} would be read in the place of what is to be written: remove "
                "it, or choose another directory"
            )


def _differences(model: Any, target: _Format) -> list[str]:
    """Returns the rules of the model that the other project's does not follow, a sentence each."""
    config, lines = model.config, []
    if config.output_stride != 32 and config.dilation_rule != target.dilation_rule:
        does = "dilates" if target.dilation_rule == "cvnets" else "does not dilate"
        lines.append(
            f"dilation_rule={config.dilation_rule!r}: at output_stride {config.output_stride} "
            f"{target.name} {does} the local convolutions, and computes other outputs"
        )
    if config.odd_size_rule != target.odd_size_rule:
        lines.append(
            f"odd_size_rule={config.odd_size_rule!r}: {target.name} computes other outputs for "
            "images whose sides are not multiples of 64"
        )
    if not isinstance(config.ffn_multiplier, int):
        lines.append(
            f"ffn_multiplier={config.ffn_multiplier}: {target.name} takes integers alone, and "
            "refuses this config"
        )
    if getattr(model, "auxiliary_head", None) is not None and not target.auxiliary:
        lines.append(
            f"the auxiliary head is left out: {target.name} has none, and it serves training alone"
        )
    return lines


def _flip(model: Any, format: str, arrays: dict[str, np.ndarray]) -> None:
    """Flips the input channels of the first convolution: as good as flipping the images."""
    row = names.entry_of("backbone.stem.convolution.kernel", format, model.config.n_attn_blocks)
    stem = next(key for key in arrays if key.endswith(row.key))
    arrays[stem] = np.ascontiguousarray(arrays[stem][:, ::-1])


Writers = dict[str, Callable[[epath.Path], None]]


def _huggingface_files(
    model: Any,
    config: MobileViTV2Config,
    rules: Mapping[str, Any] | None,
    arrays: Mapping[str, np.ndarray],
) -> Writers:
    values = {**config.to_dict(), "architectures": [type(model).__name__]}
    return {
        tensors.WHOLE[0]: lambda path: tensors.write_safetensors(path, arrays),
        "config.json": lambda path: write_whole(path, _json(values)),
    }


def _timm_files(
    model: Any,
    config: MobileViTV2Config,
    rules: Mapping[str, Any] | None,
    arrays: Mapping[str, np.ndarray],
) -> Writers:
    classes = config.num_labels if getattr(model, "classifier", None) is not None else 0
    side = config.image_size
    found = images.to_timm(rules or images.rules(side + side // 8, side, "bicubic"))
    found["input_size"][0] = config.num_channels
    arguments: dict[str, Any] = {}
    if config.output_stride != 32:
        arguments["output_stride"] = config.output_stride
    if config.num_channels != 3:
        arguments["in_chans"] = config.num_channels
    if config.classifier_dropout:
        arguments["drop_rate"] = config.classifier_dropout_prob
    values = {
        "architecture": f"mobilevitv2_{round(100 * config.width_multiplier):03d}",
        "num_classes": classes,
        "num_features": config.stage_channels[-1],
        "global_pool": "avg",
        "label_names": list((config.id2label or {}).values()) if classes else None,
        "model_args": arguments,
        "pretrained_cfg": {
            **found,
            "num_classes": classes,
            "fixed_input_size": False,
            "first_conv": "stem.conv",
            "classifier": "head.fc",
        },
        formats.OURS: config.to_dict(),
    }
    values = {name: x for name, x in values.items() if x or name in ("num_classes", formats.OURS)}
    return {
        tensors.WHOLE[0]: lambda path: tensors.write_safetensors(path, arrays),
        "config.json": lambda path: write_whole(path, _json(values)),
    }


def _cvnets_files(
    model: Any,
    config: MobileViTV2Config,
    rules: Mapping[str, Any] | None,
    arrays: Mapping[str, np.ndarray],
) -> Writers:
    segments = hasattr(model, "segmentation_head")
    values = _cvnets_config(config, segments)
    if rules:
        values["image_augmentation"] = images.to_cvnets(rules, segments)
    return {
        "model.pt": lambda path: torch_writer.write(path, arrays),
        "config.yaml": lambda path: write_whole(path, _yaml(values)),
        "config.json": lambda path: write_whole(path, _json(config.to_dict())),
    }


def _cvnets_config(config: MobileViTV2Config, segments: bool) -> dict[str, Any]:
    """Returns the part of ml-cvnets' config that describes the model.

    Source: `config/classification/imagenet/mobilevit_v2.yaml`,
    `config/segmentation/ade20k/{deeplabv3,pspnet}_mobilevitv2.yaml`.
    """
    width = {"width_multiplier": config.width_multiplier, "attn_norm_layer": "layer_norm_2d"}
    encoder: dict[str, Any] = {
        "name": "mobilevit_v2",
        "n_classes": 1000 if segments else config.num_labels,
        "mitv2": width,
        "activation": {"name": "swish"},
    }
    model: dict[str, Any] = {"classification": encoder}
    if segments:
        heads = {
            "deeplabv3": {
                "aspp_out_channels": config.aspp_out_channels,
                "aspp_rates": list(config.atrous_rates),
            },
            "pspnet": {
                "psp_out_channels": config.aspp_out_channels,
                "psp_pool_sizes": [1, 2, 3, 6],
            },
        }
        model["segmentation"] = {
            "name": "encoder_decoder",
            "n_classes": config.num_labels,
            "seg_head": config.segmentation_head,
            "output_stride": config.output_stride,
            "use_aux_head": config.auxiliary_head,
            "activation": {"name": "relu"},
            config.segmentation_head: heads[config.segmentation_head],
        }
    model |= {
        "normalization": {"name": "batch_norm", "momentum": 0.1},
        "activation": {"name": "swish"},
        "layer": {"global_pool": "mean"},
    }
    return {"model": model}


@dataclasses.dataclass(frozen=True)
class _Format:
    """What a project's files and models can hold.

    Attributes:
        name: of the project.
        files: returns the files of a model and what writes them.
        dilation_rule: of its model.
        odd_size_rule: of its model.
        flips: whether its files say that a model takes BGR.
        segments: whether it has a segmentation model.
        pyramid: whether it has PSPNet.
        auxiliary: whether it has the auxiliary head.
        fixed: whether the fields `_FIXED` are those of the published models.
        released: whether the width must be one of the published.
    """

    name: str
    files: Callable[..., Writers]
    dilation_rule: str
    odd_size_rule: str
    flips: bool = False
    segments: bool = True
    pyramid: bool = True
    auxiliary: bool = True
    fixed: bool = True
    released: bool = False


_FORMATS = {
    "hf": _Format(
        "Hugging Face",
        _huggingface_files,
        **formats.HUGGINGFACE_RULES,
        flips=True,
        pyramid=False,
        auxiliary=False,
        fixed=False,
    ),
    "timm": _Format(
        "timm", _timm_files, "cvnets", "resize", segments=False, auxiliary=False, released=True
    ),
    "cvnets": _Format("ml-cvnets", _cvnets_files, "cvnets", "resize"),
}

FORMATS = tuple(_FORMATS)
"""What `save_pretrained` writes."""


def rules_of(format: str) -> dict[str, str]:
    """Returns the rules under which a format's own project runs a model."""
    target = _FORMATS[format]
    return {"dilation_rule": target.dilation_rule, "odd_size_rule": target.odd_size_rule}


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _yaml(values: Mapping[str, Any], indent: str = "") -> str:
    """Returns nested groups of plain values as YAML, of which JSON's values are a part."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{name}:\n{_yaml(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{name}: {json.dumps(value)}\n")
    return "".join(lines)
