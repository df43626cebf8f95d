"""`mobilevitv2 eval`: evaluates a checkpoint of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from absl import flags as absl_flags
from etils import epath

from mobilevitv2_jax.cli import flags, help, processes
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.training.run_directory import read_config

USAGE = """
Evaluates a checkpoint of a run on the held-out data of its config.

    python eval.py --workdir DIR [--step N | --best] [--save-pictures]

    python eval.py --workdir runs/digits              the latest checkpoint
    python eval.py --workdir runs/digits --best       the best one that was kept

A segmentation is judged by the published protocol: whole images, the short side of eval.resize
pixels, logits enlarged to the original map, one confusion matrix. Its options:

    python eval.py --workdir runs/voc --best --save-pictures       the worst and the best images
    python eval.py --workdir runs/voc --scales=0.75,1,1.25 --flip  several views of each image
"""

_SEGMENTATION = ("save_pictures", "scales", "flip", "max_shapes")  # options of that task alone


def run(argv: Sequence[str]) -> int:
    """Runs the verb with its arguments and returns the exit status."""
    values = _flags()
    if not help.parse(USAGE, values, argv):
        return 0
    if not values.workdir:
        raise ConfigError("--workdir is required: the directory of a run, such as runs/digits")
    if values.step is not None and values.best:
        raise ConfigError("--step and --best exclude each other: give one of them, or neither")
    workdir = epath.Path(values.workdir)
    config = read_config(workdir)
    given = [name for name in _SEGMENTATION if values[name].present]
    if given and config.task != "segmentation":
        option = given[0].replace("_", "-")
        raise ConfigError(f"--{option} is for segmentation, and this run is a {config.task}")
    scales = _scales(values.scales or "1")

    processes.start(values)
    # Here and not above: loading jax takes seconds, and a mistake in the arguments should not.
    from mobilevitv2_jax.training.evaluate import evaluate_run
    from mobilevitv2_jax.training.protocol import MOST_SHAPES, Options

    protocol = Options(
        scales=scales,
        flip=bool(values.flip),
        most_shapes=values.max_shapes or MOST_SHAPES,
        pictures=workdir / "pictures" if values.save_pictures else None,
    )
    step, best = values.step, bool(values.best)
    return evaluate_run(config, workdir, step=step, best=best, protocol=protocol)


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
    flags.define(values, "workdir", str, "the directory of a run; required")
    flags.define(values, "step", int, "the step of the checkpoint; default the latest")
    flags.define(values, "best", bool, "the best checkpoint by the run's checkpoint.best_metric")
    flags.define(
        values, "save_pictures", bool, "segmentation: draw the worst and best images, in pictures/"
    )
    flags.define(values, "scales", str, "segmentation: factors of the short side; default 1")
    flags.define(values, "flip", bool, "segmentation: also show every image mirrored")
    flags.define(values, "max_shapes", int, "segmentation: the most shapes to compile for")
    processes.define(values)
    return values
