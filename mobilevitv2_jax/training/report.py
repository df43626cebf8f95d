"""The texts of a run: its introduction, its evaluations, its results."""

from __future__ import annotations

import io
import shlex
import signal
from collections.abc import Mapping

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from mobilevitv2_jax import arguments
from mobilevitv2_jax.config import Duration, flatten
from mobilevitv2_jax.data.sources import Source
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.training.run_directory import read_results

NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "loss": "loss",
}
"""How metrics are called in tables and lines, in the order in which they are shown."""

SUFFIXES = {"": "", "_multiscale": " (several views)", "_squashed": " (squashed)"}
"""What sets a metric apart from the published protocol, and how that is said."""


def identity() -> str:
    """Returns the first line of every process: which of how many it is, and all the devices."""
    devices = jax.devices()
    return (
        f"process {jax.process_index()} of {jax.process_count()}, "
        f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}"
    )


def introduction(model: MobileViTV2Config, mesh: Mesh, train: Source, held_out: Source) -> str:
    """Returns the line that tells what a run trains, and on what."""
    devices = f"{mesh.size} device{'s' * (mesh.size > 1)}"
    return (
        f"MobileViTV2 width {model.width_multiplier:g}, {model.num_labels} classes, "
        f"{model.dtype}, on {devices}; {train.name}: {len(train):,} images to train on, "
        f"{len(held_out):,} held out"
    )


def config_lines(config: ml_collections.ConfigDict) -> list[str]:
    """Returns every key of the config as `key = value`."""
    return [f"{key} = {value!r}" for key, value in sorted(flatten(config).items())]


def aligned(rows: Mapping[str, str]) -> str:
    """Returns rows of a name and a text, the texts below each other."""
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows.items())


def evaluation_line(step: int, metrics: Mapping[str, float]) -> str:
    """Returns the line that tells an evaluation."""
    parts = []
    for name, (raw, average) in _pairs(metrics).items():
        form = ".4f" if name.startswith("loss") else ".2%"
        parts.append(f"{name} {raw:{form}}, EMA {average:{form}}")
    if "eval/corrupt" in metrics:
        parts.append(f"{metrics['eval/corrupt']:.0f} could not be decoded")
    return f"eval at step {step}: " + "; ".join(parts)


def _pairs(metrics: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Returns what metrics are called, in order, with the values of weights and average."""
    return {
        shown + remark: (metrics[f"eval{suffix}/{name}"], metrics[f"eval_ema{suffix}/{name}"])
        for suffix, remark in SUFFIXES.items()
        for name, shown in NAMES.items()
        if f"eval{suffix}/{name}" in metrics
    }


def results_table(step: int, metrics: Mapping[str, float]) -> str:
    """Returns the metrics of a step as a table: raw weights and their average."""
    pairs = _pairs(metrics)
    table = Table(f"held out, step {step}", *pairs)
    for row, label in enumerate(("weights", "EMA of weights")):
        values = [
            f"{pair[row]:.6f}" if name.startswith("loss") else f"{pair[row]:.4%}"
            for name, pair in pairs.items()
        ]
        table.add_row(label, *values)
    return _text(table)


def weights_table(metrics: Mapping[str, float]) -> str:
    """Returns the metrics of weights alone, without an average, as a table."""
    shown = {
        title + remark: metrics[f"eval{suffix}/{name}"]
        for suffix, remark in SUFFIXES.items()
        for name, title in NAMES.items()
        if f"eval{suffix}/{name}" in metrics
    }
    table = Table("held out", *shown)
    table.add_row(
        "weights",
        *(f"{x:.6f}" if name.startswith("loss") else f"{x:.4%}" for name, x in shown.items()),
    )
    return _text(table)


def class_table(metrics: Mapping[str, float]) -> str:
    """Returns the IoU of every class as a table: raw weights and their average."""
    ious = {name: value for name, value in metrics.items() if "/iou/" in name}
    prefixes = list(dict.fromkeys(name.partition("/")[0] for name in ious))
    table = Table("IoU", *prefixes)
    for name in dict.fromkeys(name.partition("/iou/")[2] for name in ious):
        values = (ious.get(f"{prefix}/iou/{name}") for prefix in prefixes)
        table.add_row(name, *("" if iou is None else f"{iou:.2%}" for iou in values))
    return _text(table)


def _text(table: Table) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=80).print(table)
    return buffer.getvalue().rstrip()


def stopped(step: int, steps: int, command: str, signal: signal.Signals | None) -> str:
    """Returns how to continue a run that a signal has stopped or, without one, its own config."""
    if signal is None:  # at `schedule.stop_at`: the same command would stop there again
        words = arguments.without(shlex.split(command), ["--config.schedule.stop_at"])
        command = shlex.join(words)
    return f"stopped at step {step} of {steps}. To continue:\n  {command}"


def finished(
    directory: epath.Path,
    config: ml_collections.ConfigDict,
    step: int,
    best_step: int | None,
    command: str,
) -> str:
    """Returns the results of a finished run, where they are, and how to go on."""
    total = Duration.parse(config.schedule.total)
    options = {"--config.schedule.total": f"{2 * total.value:g}{total.unit}"}
    if "--workdir" in command:
        # The schedule spans the whole run, so a longer one is another run, in another place.
        options["--workdir"] = f"{directory}-longer"
    words = arguments.without(shlex.split(command), options)
    evaluate = f"python eval.py --workdir {shlex.quote(str(directory))}"
    if config.task == "segmentation":
        evaluate += " (as published; --squashed as above)"
    best = "none has been evaluated" if best_step is None else f"best: step {best_step}"
    events = ", TensorBoard events beside it" if config.log.tensorboard else ""
    # A segmentation has no matrix of classes.
    pictures = (directory / "predictions.png", directory / "confusion.png")
    rows = {
        "checkpoints": f"{directory / 'checkpoints'} ({best})",
        "pictures": ", ".join(str(path) for path in pictures if path.exists()),
        "metrics": f"{directory / 'metrics.jsonl'}{events}",
        "evaluate": evaluate,
        "predict": f"mobilevitv2 predict IMAGE --pretrained {shlex.quote(str(directory))}",
        "train longer": shlex.join(words + [f"{name}={value}" for name, value in options.items()]),
    }
    lines = [f"  {name:13s} {value}" for name, value in rows.items()]
    return "\n".join(
        [
            f"finished {directory}",
            results_table(step, read_results(directory, step) or {}),
            *lines,
        ]
    )
