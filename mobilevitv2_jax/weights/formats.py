"""What a path holds: weights, configuration and image rules, whichever project wrote it.

The rules of a source are part of its weights, which under others give other outputs: see
`docs/peers.md`.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from mobilevitv2_jax import class_names, processing
from mobilevitv2_jax.config import FORMAT, from_json
from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.weights import hub, images, names, shapes, tensors
from mobilevitv2_jax.weights.checkpoint import Checkpoints

OURS = "mobilevitv2_jax"
"""Key in timm's config.json that holds our own: timm passes it over."""

HUGGINGFACE_RULES: dict[str, Any] = {"dilation_rule": "huggingface", "odd_size_rule": "drop"}
"""How Hugging Face's model computes; that of the original and of timm is our default."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """Weights as a source stores them, with what belongs to them.

    Attributes:
        where: the file or directory they were read from.
        source: whose names and layouts they have: "hf", "timm", "cvnets", or "ours" of a run.
        arrays: by the key that the source gives them in a classifier (`names.full_keys`).
        config: the model, under the rules of the source.
        preprocessor: how images are brought in, in the form of `preprocessor_config.json`.
        assumed: what the source does not say of the model, and was assumed.
        assumed_images: the same of the images.
        step: of a run, of the checkpoint.
    """

    where: str
    source: str
    arrays: Mapping[str, Any]
    config: MobileViTV2Config
    preprocessor: Mapping[str, Any]
    assumed: str = ""
    assumed_images: str = ""
    step: int | None = None


def read(path: epath.PathLike, checkpoint: str | int = "latest", average: bool = True) -> Stored:
    """Reads weights of any known format.

    Args:
        path: a file, a directory, or an identifier on the hub; see `pretrained.load`.
        checkpoint: of a run directory: "latest", "best", or a step.
        average: of a run directory: the moving average of the weights, not the weights.

    Raises:
        WeightsError: if it cannot be read, or holds another model.
    """
    given, path = str(path), epath.Path(path)
    if not path.exists() and hub.is_identifier(given):
        path = hub.download(given)
    if not path.exists():
        raise WeightsError(f"{path} does not exist")
    try:
        if not path.is_dir():
            settled = path.name in tensors.WHOLE or path.name.endswith(".index.json")
            return _read_files(path, path.parent if settled else None)
        if _json(path / "config.json").get("format") == FORMAT:
            return _read_run(path, checkpoint, average)
        return _read_files(tensors.find(path), path)
    except WeightsError:
        raise
    except ValueError as error:  # of a config that is not ours
        raise WeightsError(f"{path}: {error}") from None


def _json(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise WeightsError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path} must hold an object, got {type(values).__name__}")
    return values


def _read_files(file: epath.Path, directory: epath.Path | None) -> Stored:
    """Reads a file of weights, and what the files beside it say of them."""
    values = _json(directory / "config.json") if directory else {}
    rules = _json(directory / processing.FILE) if directory else {}
    read_config = _reader(values, file)
    arrays = tensors.read(file)
    source = _source(arrays, file)
    renamed = names.full_keys(arrays, source)
    arrays = {renamed[key]: array for key, array in arrays.items()}
    found = read_config(values, arrays, source)
    found = dataclasses.replace(found, where=str(file))
    if rules:
        found = dataclasses.replace(found, preprocessor=rules, assumed_images="")
    if directory:
        said_by = directory / (processing.FILE if rules else "config.json")
        _check_images(found.preprocessor, said_by)
    return _named(found, own="param_dtype" in values.get(OURS, values))


def _check_images(rules: Mapping[str, Any], file: epath.Path) -> None:
    """Refuses rules that make no image processor, by the file that they came from."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown entries, which are named when it is made
            processing.MobileViTImageProcessor.from_dict(rules)
    except ValueError as error:
        raise WeightsError(f"{file}: {error}") from None


def _reader(values: Mapping[str, Any], file: epath.Path) -> Callable[..., Stored]:
    """Returns what reads a config.json, judged before megabytes are."""
    if "model_type" in values:
        return _huggingface
    architecture = values.get("architecture", values.get("pretrained_cfg", {}).get("architecture"))
    if architecture is not None:
        if shapes.width_of(architecture) is None:
            raise WeightsError(
                f"{file} belongs to timm's {architecture!r}; this reads mobilevitv2_050 to "
                "mobilevitv2_200"
            )
        return _timm
    if values:
        raise WeightsError(
            f"{file.parent / 'config.json'} is neither Hugging Face's (model_type), nor timm's "
            "(architecture), nor a run's (format)"
        )
    return _bare


_SIGNS = {
    "hf": ("conv_stem.convolution.weight", "mobilevitv2.conv_stem.convolution.weight"),
    "timm": ("stem.conv.weight",),
    "cvnets": ("conv_1.block.conv.weight", "encoder.conv_1.block.conv.weight"),
}


def _source(arrays: Mapping[str, Any], file: epath.Path) -> str:
    """Returns whose keys these are, by the first convolution's."""
    for source, keys in _SIGNS.items():
        if any(key in arrays for key in keys):
            return source
    first = ", ".join(sorted(arrays)[:3]) or "none"
    expected = ", ".join(key for keys in _SIGNS.values() for key in keys[-1:])
    raise WeightsError(
        f"{file} holds no MobileViTV2 of Hugging Face, timm or ml-cvnets, whose first convolution "
        f"is {expected}; its keys are {first}, …"
    )


def _huggingface(values: Mapping[str, Any], arrays: Mapping[str, Any], source: str) -> Stored:
    # Our fields win, where we have written the file; where they are absent it is theirs.
    config = MobileViTV2Config.from_dict({**HUGGINGFACE_RULES, **values})
    return _with_assumed_images(config, arrays, source, own="param_dtype" in values)


def _with_assumed_images(
    config: MobileViTV2Config, arrays: Mapping[str, Any], source: str, own: bool
) -> Stored:
    """Returns Hugging Face's, with the images of its published checkpoints, or of our models."""
    crop = config.image_size
    size = crop + crop // 8  # 288 for 256
    rules = images.rules(size, crop, "bicubic" if own else "bilinear", flip=not own)
    order = "RGB, bicubic" if own else "BGR, bilinear"
    said = f"there is no {processing.FILE}: images are taken as {order}, {size} -> {crop} pixels"
    return Stored("", source, arrays, config, rules, assumed_images=said)


_TIMM_ARGUMENTS = {"output_stride", "drop_rate", "in_chans", "num_classes", "global_pool"}


def _timm(values: Mapping[str, Any], arrays: Mapping[str, Any], source: str) -> Stored:
    published = values.get("pretrained_cfg", values)  # old files have but one level
    arguments = values.get("model_args", {})
    surprising = arguments.keys() - _TIMM_ARGUMENTS
    if surprising or arguments.get("global_pool", "avg") != "avg":
        raise WeightsError(
            "timm's config.json has model_args that make another model: "
            + ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        )
    if OURS in values:
        config = MobileViTV2Config.from_dict(values[OURS])
        return Stored("", source, arrays, config, images.from_timm(published))
    labels = values.get("label_names") or published.get("label_names")
    fields: dict[str, Any] = {
        "width_multiplier": shapes.width_of(
            values.get("architecture") or published["architecture"]
        ),
        "num_labels": values.get("num_classes", published.get("num_classes", 1000)),
        "output_stride": arguments.get("output_stride", 32),
        "num_channels": published.get("input_size", (3,))[0],
        "image_size": published.get("input_size", (3, 256, 256))[1],
    }
    if arguments.get("drop_rate"):
        fields |= {
            "classifier_dropout": True,
            "classifier_dropout_prob": arguments["drop_rate"],
        }
    if labels:
        pairs = labels.items() if isinstance(labels, Mapping) else enumerate(labels)
        descriptions = values.get("label_descriptions") or published.get("label_descriptions") or {}
        fields["id2label"] = {int(index): descriptions.get(name, name) for index, name in pairs}
        del fields["num_labels"]
    return Stored("", source, arrays, MobileViTV2Config(**fields), images.from_timm(published))


def _bare(values: Mapping[str, Any], arrays: Mapping[str, Any], source: str) -> Stored:
    """Returns a file of weights without a word beside it: all follows from its shapes."""
    fields, assumed = shapes.infer(arrays, source)
    if source == "hf":
        config = MobileViTV2Config(**fields, **HUGGINGFACE_RULES)
        found = _with_assumed_images(config, arrays, source, own=False)
        return dataclasses.replace(found, assumed=assumed)
    config = MobileViTV2Config(**fields)
    # timm 256 / 0.888, ml-cvnets: both 288. A segmentation is evaluated at a short side of 512.
    segments = any(key.startswith("seg_head.") for key in arrays)
    size, crop = (512, None) if segments else (288, 256)
    rules = images.rules(size, crop, "bicubic")
    return Stored("", source, arrays, config, rules, assumed)


def _named(found: Stored, own: bool) -> Stored:
    """Gives the classes of a known data set their names, where the source has none.

    Models of our own keep what they have: that one has 21 classes does not make them Pascal's.
    """
    config = found.config
    labels = list((config.id2label or {}).values())
    if own or labels != [f"LABEL_{index}" for index in range(len(labels))]:
        return found
    heads = ("segmentation_head.", "seg_head.")
    segmentation = any(key.startswith(heads) for key in found.arrays)
    known = class_names.guess(len(labels), segmentation)
    if known is None:
        return found
    return dataclasses.replace(found, config=config.replace(id2label=dict(enumerate(known))))


def _read_run(directory: epath.Path, checkpoint: str | int, average: bool) -> Stored:
    """Reads a checkpoint of a run of ours."""
    saved = directory / "checkpoints"
    if not (directory / "model" / "config.json").exists() or not saved.exists():
        raise WeightsError(
            f"{directory} has no checkpoint yet: let the training run until it saves"
        )
    run = from_json((directory / "config.json").read_text(), str(directory / "config.json"))
    config = MobileViTV2Config.from_pretrained(directory / "model")
    rules = _json(directory / "model" / processing.FILE)
    _check_images(rules, directory / "model" / processing.FILE)
    metric = run.checkpoint.best_metric
    with Checkpoints(saved, best_metric=metric, read_only=True, tell=_warn) as checkpoints:
        chosen = {"latest": checkpoints.latest_step, "best": checkpoints.best_step}
        if isinstance(checkpoint, str) and checkpoint not in chosen:
            raise WeightsError(f"checkpoint must be latest, best or a step, got {checkpoint!r}")
        step = chosen[checkpoint]() if isinstance(checkpoint, str) else checkpoint
        if step not in checkpoints.steps():
            kept = ", ".join(map(str, checkpoints.steps())) or "none"
            raise WeightsError(f"{directory} keeps no checkpoint {checkpoint}; it has {kept}")
        prefix = "ema_" if average else ""
        parts = checkpoints.read(step, (f"{prefix}parameters", f"{prefix}statistics"))
    arrays = {path: array for part in parts.values() for path, array in part.items()}
    where = f"{directory}, step {step}, {'moving average' if average else 'weights'}"
    if rules:
        return Stored(where, "ours", arrays, config, rules, step=step)
    rules = images.rules(run.eval.resize, run.eval.crop, run.eval.interpolation)
    return Stored(where, "ours", arrays, config, rules, step=step)


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=2)
