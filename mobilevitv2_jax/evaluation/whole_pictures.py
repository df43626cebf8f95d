"""Pictures of whole segmented images, in the palette of Pascal VOC."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from mobilevitv2_jax.data.segmentation import VOID
from mobilevitv2_jax.evaluation.figures import add_legend, new_figure, save_figure
from mobilevitv2_jax.evaluation.pictures import overlay, palette


@dataclasses.dataclass(frozen=True)
class Shown:
    """A segmented image, to be drawn.

    Attributes:
        name: of its files.
        image: RGB.
        truth: true classes.
        prediction: predicted classes.
        iou: mean over the classes that either of them shows.
    """

    name: str
    image: UInt8[np.ndarray, "height width 3"]
    truth: UInt8[np.ndarray, "height width"]
    prediction: UInt8[np.ndarray, "height width"]
    iou: float


def save_whole_segmentations(
    directory: epath.PathLike, shown: Sequence[Shown], class_names: Sequence[str], title: str
) -> None:
    """Draws whole images in one figure, `<directory>.png`, and each by itself in the directory.

    There they are NAME_image.png, NAME_truth.png and NAME_prediction.png (maps of classes with
    the palette of Pascal VOC, as its evaluation server takes them), and NAME_overlay.png.
    """
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    figure = new_figure(13, 2.6 * len(shown) + 1.2, title)
    panels = figure.subplots(len(shown), 4, squeeze=False)
    colours = palette()
    for row, one in zip(panels, shown, strict=True):
        parts = {
            "image": one.image,
            "truth": one.truth,
            "prediction": one.prediction,
            "overlay": overlay(one.image, one.prediction),
        }
        for axes, (part, array) in zip(row, parts.items(), strict=True):
            axes.axis("off")
            axes.imshow(colours[array] if array.ndim == 2 else array)
            axes.set_title(f"{one.name}: IoU {one.iou:.1%}" if part == "image" else part)
            (folder / f"{one.name}_{part}.png").write_bytes(_png(array))
    maps = [array for one in shown for array in (one.truth, one.prediction)]
    seen = sorted(set().union(*(np.unique(array).tolist() for array in maps)))
    names = {**dict(enumerate(class_names)), VOID: "void"}
    named = [(colours[index] / 255, names.get(index, str(index))) for index in seen]
    add_legend(figure, named, columns=8, edgecolor="0.5")
    save_figure(figure, folder.with_name(folder.name + ".png"))


def _png(array: np.ndarray) -> bytes:
    """Returns the file of an image, or of a map of classes with its palette."""
    picture = Image.fromarray(array)
    if array.ndim == 2:
        picture.putpalette(palette().tobytes())  # makes of grey levels the indices they are
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
