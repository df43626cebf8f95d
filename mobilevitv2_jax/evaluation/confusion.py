"""Which classes a classifier takes for which others: counted, written as CSV, and drawn."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Float, Int

from mobilevitv2_jax.evaluation.classification import Batch
from mobilevitv2_jax.evaluation.figures import new_figure, save_figure
from mobilevitv2_jax.evaluation.step import EvaluationStep
from mobilevitv2_jax.files import write_whole
from mobilevitv2_jax.models.functional import Arrays

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST = 1000  # classes that are counted: ImageNet-21k's matrix would have 100 million cells
_NAMED = 40  # classes that are drawn with their names
_NUMBERED = 20  # classes that are drawn with their counts


def count(
    step: EvaluationStep,
    parameters: Arrays,
    statistics: Arrays,
    batches: Iterable[Batch],
    put: Callable[[Batch], dict[str, jax.Array]],
    classes: int,
) -> Int[np.ndarray, "classes classes"]:
    """Returns how many examples of each true class (row) were given each class (column)."""
    confusion = np.zeros((classes, classes), np.int64)
    for batch in batches:
        arrays = put({name: batch[name] for name in ("image", "label", "mask")})
        _, probabilities = step(parameters, statistics, arrays)
        rows = (arrays["mask"], arrays["label"], probabilities.argmax(-1))
        mask, labels, predicted = multihost_utils.process_allgather(rows, tiled=True)
        np.add.at(confusion, (labels[mask > 0], predicted[mask > 0]), 1)
    return confusion


def accuracies(confusion: Int[np.ndarray, "classes classes"]) -> Float[np.ndarray, " classes"]:
    """Returns the share of each true class that was recognised; NaN for one without examples."""
    total = confusion.sum(1)
    right = np.diag(confusion).astype(np.float64)
    return np.divide(right, total, out=np.full(len(total), np.nan), where=total > 0)


def save(
    directory: epath.PathLike,
    confusion: Int[np.ndarray, "classes classes"],
    class_names: Sequence[str],
    title: str,
) -> None:
    """Writes `confusion.csv` and `confusion.png`."""
    place = epath.Path(directory)
    write_whole(place / "confusion.csv", to_csv(confusion, class_names))
    save_picture(place / "confusion.png", confusion, class_names, title)


def to_csv(confusion: Int[np.ndarray, "classes classes"], class_names: Sequence[str]) -> str:
    """Returns a row for each true class: its accuracy, and how often it was given each class."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["class", "accuracy", *class_names])
    for name, accuracy, row in zip(class_names, accuracies(confusion), confusion, strict=True):
        writer.writerow([name, f"{accuracy:.4f}", *map(int, row)])
    return buffer.getvalue()


def save_picture(
    path: epath.PathLike,
    confusion: Int[np.ndarray, "classes classes"],
    class_names: Sequence[str],
    title: str,
) -> None:
    """Draws the accuracy of each class, the lowest ones where there are many, and the matrix."""
    shown = min(len(class_names), _NAMED)
    side = 3 + 0.25 * shown
    figure = new_figure(2 * side + 2, side, title)
    left, right = figure.subplots(1, 2)
    _draw_accuracies(left, confusion, class_names)
    _draw_matrix(right, confusion, class_names)
    save_figure(figure, path)


def _draw_accuracies(axes: Axes, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    values = accuracies(confusion)
    present = np.flatnonzero(confusion.sum(1))
    lowest = present[np.argsort(values[present], kind="stable")][:_NAMED]
    bars = axes.barh(range(len(lowest)), 100 * values[lowest], color="#4c78a8")
    counts = [f"{confusion[index, index]} of {confusion[index].sum()}" for index in lowest]
    axes.bar_label(bars, counts, padding=3, fontsize=8)
    axes.set_yticks(range(len(lowest)), [class_names[index] for index in lowest])
    axes.invert_yaxis()
    axes.set_xlim(0, 130)  # room for the counts
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy (%)")
    if len(lowest) < len(present):
        axes.set_title(f"the {len(lowest)} classes with the lowest accuracy", fontsize=10)


def _draw_matrix(axes: Axes, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    axes.figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if len(class_names) <= _NAMED:
        axes.set_xticks(range(len(class_names)), class_names, rotation=90)
        axes.set_yticks(range(len(class_names)), class_names)
    if len(class_names) <= _NUMBERED:
        for row, column in np.argwhere(confusion):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = str(confusion[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
