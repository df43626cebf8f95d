"""The comparison of an artefact, in its own runtime, with JAX: on real pictures, and on labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mobilevitv2_jax.data.segmentation import VOID
from mobilevitv2_jax.errors import ExportError
from mobilevitv2_jax.evaluation.metrics import confusion_matrix, segmentation_metrics
from mobilevitv2_jax.export.examples import Examples
from mobilevitv2_jax.export.interface import BOUNDS, Outputs, Run
from mobilevitv2_jax.export.program import Program
from mobilevitv2_jax.models.interpolation import resize_rows

_TOGETHER = 8  # images at a time, where any number may be


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How an artefact compares with JAX.

    Attributes:
        pictures: how many, and which.
        difference: the largest of an output, over the largest magnitude that JAX gives it; 0 of
            outputs that are classes alone.
        agreement: share of the pictures, or of their pixels, that are given the same class.
        metric: "top-1" or "mIoU".
        accuracy: the metric in the artefact and in JAX, where labels are known.
    """

    pictures: str
    difference: float
    agreement: float
    metric: str
    accuracy: tuple[float, float] | None

    @property
    def line(self) -> str:
        """The comparison in words."""
        found = (
            f"{self.pictures}: largest difference {self.difference:.1e} of the largest output, "
            f"{self.agreement:.2%} the same class"
        )
        if self.accuracy:
            found += f", {self.metric} {self.accuracy[0]:.2%} (JAX {self.accuracy[1]:.2%})"
        return found


def compare(run: Run, reference: Program, examples: Examples, inputs: np.ndarray) -> Comparison:
    """Runs an artefact and JAX over the same inputs.

    Args:
        run: the artefact.
        reference: the same function of the model as it was loaded.
        examples: the pictures.
        inputs: the same pictures, as the artefact takes them.
    """
    jitted = jax.jit(lambda images: reference.run(reference.weights, images))
    pairs = [(run(x), tuple(map(np.asarray, jitted(x)))) for x in _batches(reference, inputs)]
    theirs, ours = (
        tuple(np.concatenate(parts)[: len(inputs)] for parts in zip(*outputs, strict=True))
        for outputs in zip(*pairs, strict=True)
    )
    difference = _difference(theirs, ours)
    if reference.shape[1] is None:  # also at a size that the pictures do not have
        batch = next(_batches(reference, inputs))
        tall = np.concatenate([batch, batch[:, : reference.multiple]], 1)
        difference = max(difference, _difference(run(tall), tuple(map(np.asarray, jitted(tall)))))
    names = reference.outputs
    found = [_classes(outputs, names) for outputs in (theirs, ours)]
    maps = np.ndim(found[0]) == 3
    accuracy = None
    if examples.labels is not None:
        judge = _miou if maps else _top1
        pair = [judge(_scores(x, names, examples.labels), examples.labels) for x in (theirs, ours)]
        accuracy = pair[0], pair[1]
    return Comparison(
        f"{len(inputs)} of {examples.name}",
        difference,
        float(np.mean(found[0] == found[1])),
        "mIoU" if maps else "top-1",
        accuracy,
    )


def check(found: Comparison, precision: str) -> None:
    """Refuses an artefact that differs more than its precision allows.

    Raises:
        ExportError: naming the figure and the bound.
    """
    bound = BOUNDS[precision]
    if bound.difference is not None and not found.difference <= bound.difference:
        raise ExportError(
            f"the artefact differs from JAX by {found.difference:.1e} of the largest output, and "
            f"{bound.difference:.0e} is allowed for {precision}: {found.line}"
        )
    if not found.agreement >= bound.agreement:
        raise ExportError(
            f"the artefact gives {found.agreement:.1%} the class that JAX gives, and "
            f"{bound.agreement:.0%} is the least for {precision}: {found.line}"
        )
    if found.accuracy:
        most = bound.loss[found.metric == "mIoU"]
        if found.accuracy[0] < found.accuracy[1] - most - 1e-9:
            raise ExportError(
                f"the artefact loses {found.accuracy[1] - found.accuracy[0]:.2%} of "
                f"{found.metric}, and {most:.0%} is allowed for {precision}: {found.line}"
            )


def _batches(program: Program, inputs: np.ndarray) -> Iterator[np.ndarray]:
    """Yields batches of the artefact's length, the last one filled up; of any length, two."""
    size = program.shape[0]
    for start in range(0, len(inputs), size or _TOGETHER):
        batch = inputs[start : start + (size or _TOGETHER)]
        if size is not None and len(batch) < size:
            batch = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])
        yield batch


def _difference(theirs: Outputs, ours: Outputs) -> float:
    found = [0.0]
    for its, our in zip(theirs, ours, strict=True):
        if its.shape != our.shape:
            raise ExportError(f"an output has the shape {its.shape}, and in JAX {our.shape}")
        if np.issubdtype(our.dtype, np.floating):
            found.append(float(np.abs(its - our).max() / np.abs(our).max()))
    return float(np.max(found))


def _classes(outputs: Outputs, names: Sequence[str]) -> np.ndarray:
    """Returns the class of each picture, or of each position."""
    if "classes" not in names:
        return outputs[0].argmax(-1)
    classes = outputs[names.index("classes")]
    return classes if classes.ndim == 3 else classes[:, 0]


def _scores(outputs: Outputs, names: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Returns the classes at the size of the labels: logits of a segmentation are enlarged."""
    if labels.ndim == 1 or "classes" in names:
        return _classes(outputs, names)
    size = labels.shape[1:3]
    return np.stack([resize_rows(x, size, 0, size[0]).argmax(-1) for x in outputs[0]])


def _top1(found: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(found == labels))


def _miou(found: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean IoU over the pixels that have a class; what is void lies above them all."""
    classes = int(found.max()) + 1
    classes = max(classes, int(labels[labels < VOID].max()) + 1)
    truth, predicted = jnp.asarray(labels), jnp.asarray(found)
    confusion = confusion_matrix(truth, predicted, truth < VOID, classes)
    return segmentation_metrics(np.asarray(confusion))["miou"]
