"""The one schema: every key of an experiment, its type, its default and its meaning.

A file of `configs/` starts from `default_config()`, sets values, and returns it. Loading a
config runs that file: configs are trusted code. This module imports neither jax nor flax.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import json
import math
import pathlib
import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.models.config import MobileViTV2Config, nearest

FORMAT = "mobilevitv2_jax.run/1"
"""Written into the `config.json` of every run directory."""

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
"""Where `configs/` stands: paths of configs are also looked up here."""

FREE_AT_RESUME = (
    "checkpoint.",
    "faults.",
    "log.",
    "mesh.",
    "profile.",
    "data.workers",
    "data.threads",
    "data.max_corrupt",
    "eval.every",
    "schedule.stop_at",
)
"""Keys (or groups) that may change when a run continues, because no result depends on them."""


def default_config() -> ml_collections.ConfigDict:
    """Returns the schema with its defaults: unlocked, so that a config may fill it in."""
    c = ml_collections.ConfigDict()

    c.task = "classification"  # "classification" | "segmentation"
    c.seed = 0  # of the weights, the order of the data, the augmentation and dropout

    c.model = _model_defaults()  # the fields of MobileViTV2Config; labels come from the data

    c.init = ml_collections.ConfigDict()
    c.init.pretrained = ""  # weights to begin with: all that from_pretrained takes; empty: new ones
    c.init.checkpoint = "latest"  # of a run directory there: "latest", "best", or a step
    c.init.average = True  # of a run directory there: the moving average, not the weights
    c.init.keep = ""  # keys that stand, separated by commas, where the weights' own rules differ

    c.data = ml_collections.ConfigDict()
    c.data.source = "digits"  # a name of data/sources.py; "synthetic" needs no data
    c.data.directory = ""  # where a source on disk has its files; several are parted by commas
    c.data.train_split = "train"
    c.data.eval_split = "test"
    c.data.batch_size = 64  # images per step, over all devices and processes
    c.data.image_size = 64  # side of the square training images, in pixels
    c.data.channel_order = "rgb"  # "rgb" | "bgr": in which the model is given the pixels
    c.data.mean = (0.0, 0.0, 0.0)  # of each channel, RGB; subtracted from pixels in [0, 1]
    c.data.std = (1.0, 1.0, 1.0)  # of each channel, RGB; pixels less their mean are divided by it
    c.data.workers = 0  # loader processes; 0 loads in this one, -1 takes what the cores allow
    c.data.threads = 2  # reading threads of each loader
    c.data.max_corrupt = 100  # different training records that cannot be decoded; more end the run

    c.augment = ml_collections.ConfigDict()
    c.augment.random_resized_crop = False  # False resizes as in evaluation
    c.augment.scale = (0.08, 1.0)  # share of the image's area that the crop covers
    c.augment.ratio = (3 / 4, 4 / 3)  # width over height of the crop
    c.augment.short_side = (256, 768)  # segmentation: range of the random short side, in pixels
    c.augment.long_side = 1024  # segmentation: the most that the long side may be, in pixels
    c.augment.horizontal_flip = 0.0  # probability
    c.augment.largest_class = 1.0  # segmentation: share of a class at which a crop is drawn again
    c.augment.blur = 0.0  # segmentation: probability of a Gaussian blur
    c.augment.photometric = 0.0  # segmentation: probability of each change of the colours
    c.augment.rotation = 0.0  # segmentation: the most that images are rotated, in degrees
    c.augment.interpolation = "bicubic"  # "bilinear" | "bicubic"
    c.augment.fast_resize = False  # resize the random crop without antialiasing
    c.augment.randaugment = 0  # operations of RandAugment on each image
    c.augment.randaugment_magnitude = 9  # their strength, from 0 to 30
    c.augment.random_erasing = 0.0  # probability of blackening a random box
    c.augment.mixup = 0.0  # alpha of MixUp's Beta(alpha, alpha); 0 mixes nothing
    c.augment.cutmix = 0.0  # the same of CutMix; where both are on, each batch throws a coin

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.name = "adamw"  # "adamw" | "sgd"
    c.optimizer.betas = (0.9, 0.999)  # adamw
    c.optimizer.epsilon = 1e-8  # adamw
    c.optimizer.momentum = 0.9  # sgd
    c.optimizer.weight_decay = 0.05
    c.optimizer.decay_one_dimensional = False  # also decay biases and normalisation parameters
    c.optimizer.layer_decay = 1.0  # factor of the learning rate, from each stage to the one before
    c.optimizer.freeze_backbone = False  # train the head alone; BatchNorm keeps its statistics
    c.optimizer.gradient_clip = 10.0  # largest global L2 norm of the gradient; 0 does not clip
    c.optimizer.label_smoothing = 0.1
    c.optimizer.accumulation_steps = 1  # parts that a batch is taken in, to save memory
    c.optimizer.max_skipped = 10  # non-finite steps in a row that end the run

    c.schedule = ml_collections.ConfigDict()
    c.schedule.total = "14 epochs"  # a duration: a number of steps, epochs or examples
    c.schedule.stop_at = ""  # a duration after which to stop and save, to be continued; "" for none
    c.schedule.warmup = "0 steps"  # a duration
    c.schedule.warmup_learning_rate = 0.0  # where the linear warm-up begins
    c.schedule.learning_rate = 2e-3  # peak
    c.schedule.min_learning_rate = 2e-4  # where the cosine ends
    c.schedule.per_epoch = False  # hold the cosine constant within an epoch, as ml-cvnets does

    c.ema = ml_collections.ConfigDict()
    c.ema.momentum = 0.0005  # ema <- (1 - momentum) * ema + momentum * model, after each step

    c.eval = ml_collections.ConfigDict()
    c.eval.every = "1 epochs"  # a duration; the last step is always evaluated
    c.eval.batch_size = 64
    c.eval.resize = 64  # short side before the crop, in pixels
    c.eval.crop = 64  # side of the central crop, in pixels
    c.eval.interpolation = "bicubic"  # "bilinear" | "bicubic"
    c.eval.pictures_from = 1000  # held-out images among which the final picture's are chosen

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every = "1 epochs"  # a duration; the last step is always saved
    c.checkpoint.keep_latest = 2
    c.checkpoint.keep_best = 1
    c.checkpoint.best_metric = "eval_ema/top1"
    c.checkpoint.allow_changes = config_dict.placeholder(str)  # keys that may differ at resume

    c.mesh = ml_collections.ConfigDict()
    c.mesh.devices = 0  # devices to use; 0 takes all
    c.mesh.fsdp = 1  # devices over which large parameters are split; 1 keeps them whole on each
    c.mesh.fsdp_smallest_bytes = 2**18  # parameters below this size stay whole

    c.faults = ml_collections.ConfigDict()
    c.faults.step_timeout = 600.0  # seconds without progress that end the run; 0 waits for ever

    c.log = ml_collections.ConfigDict()
    c.log.every = "10 steps"  # a duration between console lines
    c.log.tensorboard = True
    c.log.wandb = ""  # a project of Weights & Biases that gets the metrics, too; empty for none

    c.profile = ml_collections.ConfigDict()
    c.profile.start = 0  # first step of a profiler's trace, written to profile/; 0 writes none
    c.profile.steps = 5  # length of the trace
    return c


def _model_defaults() -> ml_collections.ConfigDict:
    """Returns `MobileViTV2Config`'s fields; class names are left out, they come with the data."""
    optional = {"num_labels": int, "problem_type": str, "batch_norm_group_size": int}
    group = ml_collections.ConfigDict()
    for field in dataclasses.fields(MobileViTV2Config):
        default: Any = field.default
        if field.name in optional:
            group[field.name] = config_dict.placeholder(optional[field.name])
        elif field.name not in ("id2label", "label2id", "unknown"):
            fractional = field.name == "ffn_multiplier"  # its default is an integer
            group[field.name] = float(default) if fractional else default
    return group


def nearest_key(name: str, keys: Iterable[str]) -> str:
    """Returns `" (did you mean 'group.key'?)"` for the closest of `keys`, or `""`.

    The last parts are compared too, so that a key without its group, or in a wrong one, is
    found; where several are equally close, as for `batch_size`, all are named.
    """

    def closeness(key: str) -> float:
        pairs = ((name, key), (name.rpartition(".")[2], key.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    scores = {key: closeness(key) for key in keys}
    best = max(scores.values(), default=0.0)
    close = [repr(key) for key, score in scores.items() if score == best >= 0.6]
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def parse_arg(arg: str, /, *, bare: str = "", **defaults: Any) -> ml_collections.ConfigDict:
    """Parses the part of `--config file.py:ARG` after the colon, `name=value,name=value`.

    Args:
        arg: the text; a name alone stands for `name=True`.
        bare: the name, if any, that a value alone is given to, as in `file.py:PATH,width=1.0`;
            several such values are kept together, with their commas.
        **defaults: the names that are allowed; their values give the types. Of a tuple of texts
            the first is the default, and others are refused.

    Returns:
        The defaults with the given values set.

    Raises:
        ConfigError: for an unknown name, or a value that is not of the default's type or choice.
    """
    values = {name: x[0] if isinstance(x, tuple) else x for name, x in defaults.items()}
    alone = []
    for part in filter(None, (part.strip() for part in (arg or "").split(","))):
        name, equals, text = part.partition("=")
        if bare and not equals and name not in defaults:
            alone.append(part)
            continue
        if name not in defaults:
            hint = f"; a value with an = in it is given as {bare}={part}" if bare else ""
            raise ConfigError(
                f"the config has no argument {name!r}{nearest(name, defaults)}; "
                f"it takes {', '.join(defaults)}{hint}"
            )
        values[name] = _read_argument(name, text, defaults[name])
    if alone:
        values[bare] = ",".join(alone)
    return ml_collections.ConfigDict(values)


def _read_argument(name: str, text: str, default: Any) -> Any:
    if isinstance(default, tuple):
        if text not in default:
            allowed = ", ".join(default)
            raise ConfigError(
                f"the config's argument {name} must be one of {allowed}, got {text!r}"
                f"{nearest(text, default)}"
            )
        return text
    kind = type(default)
    try:
        if kind is bool:
            return {"": True, "true": True, "false": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ConfigError(
            f"the config's argument {name} must be of type {kind.__name__}, got {text!r}"
        ) from None


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training with its unit: "20000 steps", "300 epochs" or "1.28e6 examples"."""

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str, name: str = "duration") -> Duration:
        """Reads a duration; the space may be left out.

        Raises:
            ConfigError: if `text` is not a number of steps, epochs or examples.
        """
        match = re.fullmatch(r"\s*([0-9.][0-9.eE+-]*)\s*(step|epoch|example)s?\s*", str(text))
        try:
            return cls(float(match[1]), match[2] + "s")  # type: ignore[index]
        except (TypeError, ValueError):
            raise ConfigError(
                f"{name} must be a number of steps, epochs or examples "
                f"such as '300 epochs', got {text!r}"
            ) from None

    def steps(self, examples: int, batch_size: int) -> int:
        """Returns the number of steps; an epoch is ceil(examples / batch_size) steps."""
        per_epoch = math.ceil(examples / batch_size)
        scale = {"steps": 1.0, "epochs": per_epoch, "examples": 1 / batch_size}[self.unit]
        return math.ceil(self.value * scale - 1e-9)


def find_file(path: str) -> pathlib.Path:
    """Returns the config file `path`, looked up here and then beside the package.

    Raises:
        ConfigError: if there is no such file, naming the configs that exist.
    """
    for file in (pathlib.Path(path), REPOSITORY / path):
        if file.is_file():
            return file.resolve()
    places = dict.fromkeys(map(str, (pathlib.Path.cwd(), REPOSITORY)))
    known = sorted(f"configs/{file.name}" for file in (REPOSITORY / "configs").glob("*.py"))
    raise ConfigError(
        f"no config file {path!r}{nearest(path, known)}; "
        f"it is looked up in {' and in '.join(places)}. "
        f"There are {', '.join(known) or 'none'}"
    )


def load(path: str, arg: str = "") -> ml_collections.ConfigDict:
    """Runs the config file `path` and returns its `get_config(arg)`, locked.

    Raises:
        ConfigError: if the file is missing, fails, has no `get_config`, or its keys are not
            those of the schema.
    """
    file = find_file(path)
    config = call(file, "get_config", arg)
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"get_config of {file} must return a ConfigDict, got {config!r}")
    keys, known = flatten(config).keys(), flatten(default_config()).keys()
    for key in sorted(keys - known):
        raise ConfigError(f"{file} sets the unknown key {key!r}{nearest_key(key, known)}")
    for key in sorted(known - keys):
        raise ConfigError(f"{file} lacks the key {key!r}; start from default_config()")
    return config.lock()


def call(file: pathlib.Path, name: str, *args: Any) -> Any:
    """Runs a config file and returns what its function `name` returns, or all that it yields.

    Raises:
        ConfigError: if there is no such function; for an error in the file, with its line.
    """
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} must be a Python file, with a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, name):
            raise ConfigError(f"{file} must define {name}({'arg' * len(args)}), and does not")
        result = getattr(module, name)(*args)
        return list(result) if inspect.isgenerator(result) else result
    except ConfigError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        if isinstance(error, SyntaxError) and error.filename == str(file):
            lines.append(error.lineno)
        where = f"{file}:{lines[-1]}" if lines else str(file)
        raise ConfigError(f"{where} failed with {type(error).__name__}: {error}") from error


def flatten(config: ml_collections.ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns every key as `group.key`, with JSON values (tuples become lists)."""
    flat: dict[str, Any] = {}
    for key, value in dict(config).items():
        if isinstance(value, ml_collections.ConfigDict | Mapping):
            flat.update({f"{key}.{inner}": item for inner, item in flatten(value).items()})
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the text of a run's `config.json`, to which no default is left open."""
    groups = json.loads(config.to_json())
    return json.dumps({"format": FORMAT, **groups}, indent=2, sort_keys=True) + "\n"


def from_json(text: str, where: str) -> ml_collections.ConfigDict:
    """Reads a run's `config.json`, the inverse of `to_json`.

    Raises:
        ConfigError: if the text is not such a file, or has keys this version does not know.
    """
    try:
        values = json.loads(text)
        form = values.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{where} is not the config of a run (expected format {FORMAT})"
        ) from None
    if form != FORMAT:
        raise ConfigError(f"{where} has format {form!r}; this version reads {FORMAT}")
    config = default_config()
    known = flatten(config)
    for key, value in flatten(values).items():
        if key not in known:
            raise ConfigError(f"{where} has the unknown key {key!r}{nearest_key(key, known)}")
        try:
            _set(config, key, tuple(value) if isinstance(get_value(config, key), tuple) else value)
        except TypeError as error:
            raise ConfigError(f"{where} has a value of the wrong type for {key}: {error}") from None
    return config.lock()


def get_value(config: ml_collections.ConfigDict, key: str) -> Any:
    """Returns the value of a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def _set(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    *groups, last = key.split(".")
    for part in groups:
        config = config[part]
    config[last] = value


def override(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets values by dotted key, as the command line does: they stand against pretrained weights.

    Raises:
        ConfigError: for an unknown key, with the nearest one, or a value of the wrong type.
    """
    known = flatten(config)
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"the config has no key {key!r}{nearest_key(key, known)}")
        try:
            config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{key} cannot be {value!r}: {error}") from None
    if config.init.pretrained:
        config.init.keep = ",".join(filter(None, [config.init.keep, *sorted(values)]))


def allowed_changes(config: ml_collections.ConfigDict) -> list[str]:
    """Returns the keys and groups that `checkpoint.allow_changes` names."""
    names = (config.checkpoint.allow_changes or "").split(",")
    return [name.strip() for name in names if name.strip()]


def differences(saved: ml_collections.ConfigDict, wanted: ml_collections.ConfigDict) -> list[str]:
    """Returns `key: saved -> wanted` for each key that may not change when a run continues.

    `checkpoint.allow_changes` of the wanted config (keys or groups, separated by commas) and
    the keys of `FREE_AT_RESUME` are passed over, and so is `init.keep`: what it lets stand is
    compared by itself, and every option of a command line is in it.
    """
    free = (*FREE_AT_RESUME, *allowed_changes(wanted), "init.keep")
    before, after = flatten(saved), flatten(wanted)
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _is_named(key, free)
    ]


def _is_named(key: str, names: Iterable[str]) -> bool:
    """Returns whether a key, or a group that it is in, is among the names."""
    return any(key == name or key.startswith(name.rstrip(".") + ".") for name in names)


def run_name(path: str, arg: str, overrides: Mapping[str, Any]) -> str:
    """Returns the default name of a run directory: `<config>[-<arg>][-<hash of overrides>]`.

    What may change when a run continues is not part of it: the run is found again.
    """
    name = pathlib.Path(path).stem
    if arg:
        name += "-" + re.sub(r"[^\w=.,+-]", "_", arg)
    lasting = {key: value for key, value in overrides.items() if not _is_named(key, FREE_AT_RESUME)}
    if lasting:
        text = json.dumps(dict(sorted(lasting.items())), default=str)
        name += "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return name


def model_config(config: ml_collections.ConfigDict, **changes: Any) -> MobileViTV2Config:
    """Returns the model's configuration of an experiment, with `changes`.

    Raises:
        ConfigError: if a value is out of range.
    """
    try:
        return MobileViTV2Config(**{**config.model.to_dict(), **changes})
    except ValueError as error:
        raise ConfigError(f"config.model.{error}") from None
