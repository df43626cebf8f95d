"""`mobilevitv2 eval`: evaluates a checkpoint of a run, or other weights on a config's data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_collections
from absl import flags as absl_flags
from etils import epath

from mobilevitv2_jax.cli import flags, help, processes
from mobilevitv2_jax.cli.experiment import define_config, read_experiment
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.training.run_directory import read_config
from mobilevitv2_jax.validation import validate

USAGE = """
Evaluates a checkpoint of a run on the held-out data of its config.

    python eval.py --workdir DIR [--step N | --best] [--save-pictures]

    python eval.py --workdir runs/digits              the latest checkpoint
    python eval.py --workdir runs/digits --best       the best one that was kept

    python eval.py --config configs/imagenet.py --pretrained PATH     weights from elsewhere

takes the data of a config, and the rules of the weights (`--config.…` sets others).

A segmentation is judged by the published protocol: whole images, the short side of eval.resize
pixels, logits enlarged to the original map, one confusion matrix. Its options:

    python eval.py --workdir runs/voc --best --save-pictures       the worst and the best images
    python eval.py --workdir runs/voc --scales=0.75,1,1.25 --flip  several views of each image
    python eval.py --workdir runs/voc --squashed                   as the training did, to the digit
"""

_PROTOCOL = ("save_pictures", "scales", "flip", "max_shapes")
_SEGMENTATION = (*_PROTOCOL, "squashed")  # options of that task alone


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv):
        return 0
    if bool(values.workdir) == bool(values.pretrained):
        raise ConfigError(
            "--workdir and --pretrained exclude each other: give one of them"
            if values.workdir
            else "--workdir is required: the directory of a run, such as runs/digits; or "
            "--pretrained with --config"
        )
    if values.step is not None and values.best:
        raise ConfigError("--step and --best exclude each other: give one of them, or neither")
    config = _config(values)
    given = [name for name in _SEGMENTATION if values[name].present]
    if given and config.task != "segmentation":
        option = given[0].replace("_", "-")
        raise ConfigError(f"--{option} is for segmentation, and this run is a {config.task}")
    if values.squashed and (others := [name for name in given if name in _PROTOCOL]):
        option = others[0].replace("_", "-")
        raise ConfigError(f"--squashed is not the published protocol, which --{option} belongs to")
    scales = _scales(values.scales or "1")
    if values.max_shapes is not None and values.max_shapes < 1:
        raise ConfigError(f"--max-shapes must be at least 1, got {values.max_shapes}")

    processes.start(values)
    # Here and not above: loading jax takes seconds, and a mistake in the arguments should not.
    from mobilevitv2_jax.training import evaluate
    from mobilevitv2_jax.training.protocol import MOST_SHAPES, Options

    pictures = epath.Path(values.workdir or ".") / "pictures" if values.save_pictures else None
    most_shapes = values.max_shapes or MOST_SHAPES
    quick = config.task != "segmentation" or values.squashed
    protocol = None if quick else Options(scales, bool(values.flip), most_shapes, pictures)
    if values.pretrained:
        return evaluate.evaluate_pretrained(config, protocol)
    step, best = values.step, bool(values.best)
    return evaluate.evaluate_run(config, values.workdir, step=step, best=best, protocol=protocol)


def _config(values: absl_flags.FlagValues) -> ml_collections.ConfigDict:
    """Returns the config of a run, or that of the command line with the weights in it."""
    given = flags.given(values)
    if values.workdir:
        others = [name for name in given if name.startswith(flags.CONFIG)]
        if others:
            raise ConfigError(
                f"--workdir has a config of its own, so --{others[0]} has no place beside it"
            )
        return read_config(values.workdir)
    if values.step is not None or values.best:
        raise ConfigError(
            "--step and --best are for --workdir; with --pretrained set --config.init.checkpoint"
        )
    values[f"{flags.CONFIG}.init.pretrained"].parse(values.pretrained)
    config = read_experiment(values).config
    validate(config)
    return config


def _scales(text: str) -> tuple[float, ...]:
    try:
        scales = tuple(map(float, text.split(",")))
        if not all(0 < scale < math.inf for scale in scales):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--scales must be positive numbers with commas, such as 0.75,1,1.25, got {text!r}"
        ) from None
    return scales


def _flags() -> absl_flags.FlagValues:
    values = flags.new()
    define_config(values)
    flags.define(values, "workdir", str, "the directory of a run")
    flags.define(values, "pretrained", str, "weights of any kind that is read, with --config")
    flags.define(values, "step", int, "the step of the checkpoint; default the latest")
    flags.define(values, "best", bool, "the best checkpoint by the run's checkpoint.best_metric")
    flags.define(
        values, "save_pictures", bool, "segmentation: draw the worst and best images, in pictures/"
    )
    flags.define(values, "scales", str, "segmentation: factors of the short side; default 1")
    flags.define(values, "flip", bool, "segmentation: also show every image mirrored")
    flags.define(values, "max_shapes", int, "segmentation: the most shapes to compile for")
    flags.define(
        values, "squashed", bool, "segmentation: the quick evaluation that the training makes"
    )
    processes.define(values)
    return values
