"""Pictures of results."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mobilevitv2_jax.evaluation.classification import Predictions

_RIGHT, _WRONG = "#1b7837", "#b2182b"


def choose_examples(predictions: Predictions, count: int) -> np.ndarray:
    """Returns which examples to show: up to half of them wrong, the surest mistakes first.

    The right ones are the least sure and the surest, so that the picture shows where the model
    begins to doubt.
    """
    chosen, sure = predictions.probabilities.argmax(-1), predictions.probabilities.max(-1)
    order = np.argsort(-sure, kind="stable")
    wrong = order[chosen[order] != predictions.labels[order]][: count // 2]
    right = order[chosen[order] == predictions.labels[order]]
    room = count - len(wrong)
    if len(right) > room:
        right = np.concatenate([right[: room - room // 2], right[len(right) - room // 2 :]])
    return np.concatenate([wrong, right])


def save_predictions(
    path: epath.PathLike,
    predictions: Predictions,
    class_names: Sequence[str],
    title: str,
    *,
    columns: int = 8,
    rows: int = 4,
) -> None:
    """Draws examples with the predicted class, its probability, and the truth where it differs."""
    shown = choose_examples(predictions, columns * rows)
    # Figure, not pyplot: no global state, and no display is asked for.
    figure = Figure(figsize=(1.5 * columns, 1.9 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, index in zip(figure.axes, shown, strict=False):
        label = int(predictions.labels[index])
        best = int(predictions.probabilities[index].argmax())
        text = f"{class_names[best]}  {predictions.probabilities[index, best]:.0%}"
        if best != label:
            text += f"\ntruth {class_names[label]}"
        axes.imshow(predictions.images[index])
        axes.set_title(text, fontsize=10, color=_RIGHT if best == label else _WRONG)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    epath.Path(path).write_bytes(buffer.getvalue())
