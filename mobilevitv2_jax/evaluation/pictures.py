"""Pictures of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8

from mobilevitv2_jax.evaluation.classification import Predictions
from mobilevitv2_jax.evaluation.figures import add_legend, new_figure, save_figure
from mobilevitv2_jax.models.interpolation import resize_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE = 5.0
"""Inches of the longer side of a picture that stands in a row."""

_MOST_NAMED, _NAMED_A_ROW = 12, 4
"""Classes in the legend of an overlay: of 150, most cover a few pixels."""

_LONGER = 0.96
"""The longer side of a picture that stands in a grid, in widths of its cell."""

_LETTERS = 17
"""In a line above such a picture; longer ones are written smaller."""

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
    figure = new_figure(1.5 * columns, 1.9 * rows + 0.6, title)
    cell = 1.27  # high: two lines of text stand above a picture
    axes = _grid(figure, columns, rows * cell)
    for number, index in enumerate(shown):
        label = int(predictions.labels[index])
        best = int(predictions.outputs[index].argmax())
        text = f"{class_names[best]}  {predictions.outputs[index, best]:.0%}"
        if best != label:
            text += f"\ntruth {class_names[label]}"
        colour = _RIGHT if best == label else _WRONG
        row, column = divmod(number, columns)
        _show(axes, column, (row + 1) * cell, predictions.images[index], text, colour)
    save_figure(figure, path)


def _grid(figure: Figure, columns: int, height: float) -> Axes:
    """Returns axes of so many columns, each of a width of 1, in which `_show` draws.

    One for all pictures: to make and lay out axes for each of 32 takes two seconds.
    """
    axes = figure.subplots()
    axes.axis("off")
    axes.set(xlim=(0, columns), ylim=(height, 0))
    return axes


def _show(
    axes: Axes, column: int, bottom: float, picture: np.ndarray, text: str = "", colour: str = "k"
) -> None:
    """Draws a picture in a column, and its text above it."""
    scale = _LONGER / max(picture.shape[:2])
    height, width = (scale * pixels for pixels in picture.shape[:2])
    left, top = column + (1 - width) / 2, bottom - height
    axes.imshow(picture, extent=(left, left + width, bottom, top))
    longest = max(map(len, text.split("\n")))
    size = 10 * min(1, _LETTERS / max(longest, 1))
    axes.text(column + 0.5, top - 0.04, text, color=colour, fontsize=size, ha="center")


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
    figure = new_figure(5.4 * columns, 1.8 * rows + 1.2, title)
    axes = _grid(figure, 3 * columns, rows)
    shown = zip(predictions.images, predictions.labels, predictions.outputs, strict=True)
    for number, (image, label, output) in zip(range(rows * columns), shown, strict=False):
        row, first = number // columns, 3 * (number % columns)
        named = (
            ("image", image),
            ("truth", overlay(image, label)),
            ("prediction", overlay(image, output)),
        )
        for column, (name, picture) in enumerate(named, start=first):
            _show(axes, column, row + 1, picture, "" if row else name)
    colours = palette() / 255
    classes = [(colours[index], name) for index, name in enumerate(class_names) if index]
    add_legend(figure, [*classes, (colours[255], "void")], columns=11)
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
    named = [
        (colours[(index + first) % 256], f"{class_names[index]}  {share:.1%}")
        for index, share in shares.items()
        if index + first
    ][:_MOST_NAMED]
    rows = -(-len(named) // _NAMED_A_ROW)
    figure = _row([("", image), ("", painted)], below=0.3 * rows + 0.1)
    add_legend(figure, named, columns=_NAMED_A_ROW)
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
    from matplotlib import colormaps

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
    row = max(height * scale, 1)
    figure = new_figure(len(panels) * max(width * scale, 1), row + above + below)
    for axes, (title, picture) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        axes.axis("off")
        axes.imshow(picture)
        axes.set_title(title, fontsize=10)
    return figure
