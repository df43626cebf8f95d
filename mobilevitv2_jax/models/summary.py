"""What a model costs: parameters, multiply-accumulates and activations of each stage.

Everything is traced abstractly: no weight is ever made, so even the widest model takes a second.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.platform import traced_for
from mobilevitv2_jax.models.tasks import MobileViTV2ForImageClassification


@dataclasses.dataclass(frozen=True)
class Row:
    """The cost of one stage for one image.

    Attributes:
        name: "stem", "stage 1" to "stage 5", or "head".
        output: shape of the output, without the batch.
        parameters: number of trainable parameters, those of the normalisations included.
        macs: multiply-accumulates of convolutions and matrix products.
        activations: output elements of convolutions and matrix products, as timm counts them.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    activations: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The cost of a model for one image: its stages and, as properties, their sums."""

    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward pass of one image."""
        return sum(row.macs for row in self.rows)

    @property
    def activations(self) -> int:
        """Output elements of convolutions and matrix products for one image."""
        return sum(row.activations for row in self.rows)


_COUNTS = ("parameters", "macs", "activations")


def summarize(
    model: MobileViTV2Config | nnx.Module, image_size: int | tuple[int, int] | None = None
) -> Summary:
    """Counts what a model costs for one image, in evaluation mode.

    Args:
        model: a model, or a config, which stands for its image classifier.
        image_size: side, or (height, width), of the image; `config.image_size` by default.
    """
    config: Any = model if isinstance(model, MobileViTV2Config) else model.config  # type: ignore[attr-defined]
    kind: Any = MobileViTV2ForImageClassification if model is config else type(model)
    size = image_size or config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    x = jax.ShapeDtypeStruct((1, height, width, config.num_channels), jnp.dtype(config.dtype))

    # As shifted multiply-adds a depthwise convolution could not be told from other arithmetic.
    whole = _abstract(kind, config.replace(depthwise="convolution", return_dict=True))
    backbone = getattr(whole, "backbone", whole)
    total, rows = _row("head", [whole], x), [_row("stem", [backbone.stem], x)]
    for number, stage in enumerate(backbone.stages, start=1):
        y = jax.ShapeDtypeStruct((1, *rows[-1].output), x.dtype)
        rows.append(_row(f"stage {number}", stage, y))
    if whole is not backbone:
        # Whatever is not the backbone's is the head's, whichever head that is.
        rest = Summary(tuple(rows))
        head = (getattr(total, count) - getattr(rest, count) for count in _COUNTS)
        rows.append(Row("head", total.output, *head))
    return Summary(tuple(rows))


def render(summary: Summary) -> str:
    """Returns the summary as a table of aligned columns with totals."""
    lines = [["stage", "output", "parameters", "MACs (M)", "activations (M)"]]
    total = Row("total", (), *(getattr(summary, count) for count in _COUNTS))
    for row in (*summary.rows, total):
        output = " x ".join(map(str, row.output))
        millions = (f"{count / 1e6:,.2f}" for count in (row.macs, row.activations))
        lines.append([row.name, output, f"{row.parameters:,}", *millions])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = "-" * len(aligned[0])
    return "\n".join([aligned[0], rule, *aligned[1:-1], rule, aligned[-1]])


def _abstract(kind: Any, config: MobileViTV2Config) -> Any:
    def make() -> nnx.Module:
        model = kind(config, rngs=nnx.Rngs(0))
        model.eval()
        return model

    return nnx.eval_shape(make)


def _row(name: str, blocks: Iterable[nnx.Module], x: jax.ShapeDtypeStruct) -> Row:
    graph, parameters, rest = nnx.split(nnx.List(blocks), nnx.Param, ...)  # type: ignore[misc]

    def apply(parameters: Any, rest: Any, x: Any) -> jax.Array:
        for block in nnx.merge(graph, parameters, rest):
            x = block(x)
        return getattr(x, "logits", getattr(x, "last_hidden_state", x))

    # Untold, it would hold the arithmetic of all platforms.
    with traced_for("cpu"):
        jaxpr, output = jax.make_jaxpr(apply, return_shape=True)(parameters, rest, x)
    macs, activations = zip(*_products(jaxpr.jaxpr), strict=True)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters))
    return Row(name, output.shape[1:], count, sum(macs), sum(activations))


def _products(jaxpr: Any) -> Iterator[tuple[int, int]]:
    """Yields multiply-accumulates and output elements of each convolution and matrix product.

    Sums that attention weighs by scores are products of a batch of matrices, and left out: timm
    counts layers with parameters.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            left, right = (operand.aval.shape for operand in equation.invars)
            outputs = math.prod(equation.outvars[0].aval.shape)
            if equation.primitive.name == "dot_general":
                (of_left, _), (batched, _) = equation.params["dimension_numbers"]
                if batched:
                    continue
                contracted = math.prod(left[i] for i in of_left)
            else:
                axis = equation.params["dimension_numbers"].rhs_spec[0]
                contracted = math.prod(right) // right[axis]
            yield outputs * contracted, outputs
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                    yield from _products(getattr(inner, "jaxpr", inner))
