"""The texts of a run: its introduction, its evaluations, its results."""

from __future__ import annotations

import io
from collections.abc import Mapping

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from mobilevitv2_jax.config import Duration, flatten
from mobilevitv2_jax.data.sources import Source
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.training.run_directory import read_results


def introduction(model: MobileViTV2Config, mesh: Mesh, train: Source, held_out: Source) -> str:
    """Returns the first lines of a run: where it runs, and on what."""
    kind = mesh.devices.flat[0].device_kind
    return (
        f"process {jax.process_index()} of {jax.process_count()}, {mesh.size} x {kind}, "
        f"jax {jax.__version__}\n"
        f"MobileViTV2 width {model.width_multiplier:g}, {model.num_labels} classes, "
        f"{model.dtype}; {train.name}: {len(train):,} images to train on, "
        f"{len(held_out):,} held out"
    )


def config_lines(config: ml_collections.ConfigDict) -> list[str]:
    """Returns every key of the config as `key = value`."""
    return [f"{key} = {value!r}" for key, value in sorted(flatten(config).items())]


def evaluation_line(step: int, metrics: Mapping[str, float]) -> str:
    """Returns the line that tells an evaluation."""
    line = (
        f"eval at step {step}: top-1 {metrics['eval/top1']:.2%}, "
        f"EMA {metrics['eval_ema/top1']:.2%}; "
        f"loss {metrics['eval/loss']:.4f}, EMA {metrics['eval_ema/loss']:.4f}"
    )
    corrupt = metrics.get("eval/corrupt")
    return line + (f"; {corrupt:.0f} could not be decoded" if corrupt else "")


def results_table(step: int, metrics: Mapping[str, float]) -> str:
    """Returns the metrics of a step as a table: raw weights and their average."""
    table = Table("held out, step " + str(step), "top-1", "top-5", "loss")
    for prefix, name in (("eval", "weights"), ("eval_ema", "EMA of weights")):
        table.add_row(
            name,
            f"{metrics[f'{prefix}/top1']:.4%}",
            f"{metrics[f'{prefix}/top5']:.4%}",
            f"{metrics[f'{prefix}/loss']:.6f}",
        )
    buffer = io.StringIO()
    Console(file=buffer, width=80).print(table)
    return buffer.getvalue().rstrip()


def finished(
    directory: epath.Path,
    config: ml_collections.ConfigDict,
    step: int,
    best_step: int | None,
    command: str,
) -> str:
    """Returns the results of a finished run, where they are, and how to go on."""
    total = Duration.parse(config.schedule.total)
    longer = f"{2 * total.value:g}{total.unit}"
    rows = {
        "checkpoints": f"{directory / 'checkpoints'} (best: step {best_step})",
        "pictures": f"{directory / 'predictions.png'}",
        "metrics": f"{directory / 'metrics.jsonl'}, TensorBoard events beside it",
        "evaluate": f"python eval.py --workdir {directory}",
        "train longer": f"{command} --config.schedule.total={longer} --workdir {directory}-longer",
    }
    lines = [f"  {name:13s} {value}" for name, value in rows.items()]
    return "\n".join(
        [
            f"finished {directory}",
            results_table(step, read_results(directory, step) or {}),
            *lines,
        ]
    )
