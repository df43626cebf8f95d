"""Pictures of results."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mobilevitv2_jax.evaluation.classification import Predictions
from mobilevitv2_jax.models.interpolation import resize_rows

_SIDE = 5.0
"""Inches of the longer side of a picture that stands in a row."""

_MOST_NAMED, _NAMED_A_ROW = 12, 4
"""Classes in the legend of an overlay: of 150, most cover a few pixels."""

_RIGHT, _WRONG = "#1b7837", "#b2182b"


def choose_examples(predictions: Predictions, count: int) -> np.ndarray:
    """Returns which examples to show: up to half of them wrong, the surest mistakes first.

    The right ones are the least sure and the surest, so that the picture shows where the model
    begins to doubt.
    """
    chosen, sure = predictions.outputs.argmax(-1), predictions.outputs.max(-1)
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
        best = int(predictions.outputs[index].argmax())
        text = f"{class_names[best]}  {predictions.outputs[index, best]:.0%}"
        if best != label:
            text += f"\ntruth {class_names[label]}"
        axes.imshow(predictions.images[index])
        axes.set_title(text, fontsize=10, color=_RIGHT if best == label else _WRONG)
    save_figure(figure, path)


def palette(classes: int = 256) -> UInt8[np.ndarray, "classes 3"]:
    """Returns the colours of Pascal VOC: the bits of a class, dealt out to red, green and blue.

    Source: `VOClabelcolormap` of the VOC development kit. 255, the void label, is near white.
    """
    colours = np.zeros((classes, 3), np.uint8)
    indices = np.arange(classes)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((indices >> channel) & 1) << (7 - bit)).astype(np.uint8)
        indices >>= 3
    return colours


def overlay(
    image: UInt8[np.ndarray, "height width 3"],
    classes: UInt8[np.ndarray, "height width"],
    *,
    opacity: float = 0.6,
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the image with its classes painted over it; background (0) is left clear."""
    colours = palette()[classes].astype(np.float32)
    share = opacity * (classes > 0)[..., None]
    return np.rint((1 - share) * image + share * colours).astype(np.uint8)


def save_segmentations(
    path: epath.PathLike,
    predictions: Predictions,
    class_names: Sequence[str],
    title: str,
    *,
    columns: int = 3,
    rows: int = 5,
) -> None:
    """Draws images beside the truth and the prediction laid over them, with a legend."""
    figure = Figure(figsize=(5.4 * columns, 1.9 * rows + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(rows, 3 * columns, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for column, name in enumerate(("image", "truth", "prediction") * columns):
        panels[0, column].set_title(name, fontsize=10)
    shown = zip(predictions.images, predictions.labels, predictions.outputs, strict=True)
    for number, (image, label, output) in zip(range(rows * columns), shown, strict=False):
        row, first = number // columns, 3 * (number % columns)
        pictures = (image, overlay(image, label), overlay(image, output))
        for axes, picture in zip(panels[row, first : first + 3], pictures, strict=True):
            axes.imshow(picture)
    colours = palette() / 255
    handles = [
        Patch(color=colours[index], label=name) for index, name in enumerate(class_names) if index
    ]
    handles.append(Patch(color=colours[255], label="void"))
    figure.legend(handles=handles, loc="outside lower center", ncols=11, fontsize=9)
    save_figure(figure, path)


def save_overlay(
    path: epath.PathLike,
    image: UInt8[np.ndarray, "height width 3"],
    classes: Int[np.ndarray, "height width"],
    shares: Mapping[int, float],
    class_names: Mapping[int, str],
) -> None:
    """Draws a picture beside itself with its classes painted over it, and a legend.

    Args:
        path: of the file.
        image: the picture.
        classes: of every pixel.
        shares: of the pixels, by class, the largest first: the legend names the first of them.
        class_names: by class. A class 0 that is not called background is painted, too.
    """
    first = 0 if class_names[0] == "background" else 1
    painted = overlay(image, (classes + first).astype(np.uint8))
    colours = palette() / 255
    handles = [
        Patch(color=colours[(index + first) % 256], label=f"{class_names[index]}  {share:.1%}")
        for index, share in shares.items()
        if index + first
    ][:_MOST_NAMED]
    rows = -(-len(handles) // _NAMED_A_ROW)
    figure = _row([("", image), ("", painted)], below=0.3 * rows + 0.1)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=_NAMED_A_ROW, fontsize=9)
    save_figure(figure, path)


def save_heat(
    path: epath.PathLike,
    image: UInt8[np.ndarray, "height width 3"],
    heats: Sequence[tuple[str, Float[np.ndarray, "rows columns"]]],
) -> None:
    """Draws a picture beside itself in heat: where each of the titles was found.

    Args:
        path: of the file.
        image: the picture.
        heats: titles, and maps in [0, 1] of any size.
    """
    size = image.shape[:2]
    panels = [("", image)]
    for title, heat in heats:
        fine = resize_rows(heat[..., None].astype(np.float32), size, 0, size[0])
        colours = colormaps["turbo"](fine[..., 0])[..., :3] * 255
        hot = 0.75 * fine  # what is cold stays as it is
        panels.append((title, np.rint((1 - hot) * image + hot * colours).astype(np.uint8)))
    save_figure(_row(panels), path)


def _row(panels: Sequence[tuple[str, np.ndarray]], below: float = 0.0) -> Figure:
    """Returns pictures of one size beside each other, with room below in inches."""
    height, width = panels[0][1].shape[:2]
    scale = _SIDE / max(height, width)
    above = 0.3 * any(text for text, _ in panels)
    size = (len(panels) * max(width * scale, 1), max(height * scale, 1) + above + below)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, picture) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        axes.axis("off")
        axes.imshow(picture)
        axes.set_title(title, fontsize=10)
    return figure


def save_figure(figure: Figure, path: epath.PathLike) -> None:
    """Writes a figure as PNG, to a local disk or to an object store."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    epath.Path(path).write_bytes(buffer.getvalue())
