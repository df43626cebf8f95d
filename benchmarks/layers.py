"""Layers of the training step on a CPU: their gradients written out, and derived."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import environment, in_turns, table
from benchmarks.models import Run
from mobilevitv2_jax.models.layers import depthwise
from mobilevitv2_jax.models.normalization import normalize
from mobilevitv2_jax.training.program import compiler_options

Layer = Callable[[Any, Any, str], jax.Array]
"""Takes input, parameters, and how its gradient is found."""


def _depthwise(stride: int) -> Layer:
    return lambda x, kernel, how: depthwise(x, kernel, stride, 1, "shifts", how)


def _batch_norm(x: Any, scale: Any, how: str) -> jax.Array:
    return normalize(
        x[None], scale, scale, per_channel=True, epsilon=1e-5, act=jax.nn.silu, gradients=how
    )[0][0]


def _group_norm(x: Any, scale: Any, how: str) -> jax.Array:
    return normalize(x, scale, scale, per_channel=False, epsilon=1e-5, gradients=how)[0]


def _between(x: Any, kernel: Any, how: str) -> jax.Array:
    """Normalised, activated and convolved in turn, as in an inverted residual."""
    scale = jnp.ones(x.shape[-1])
    y = depthwise(_batch_norm(x, scale, how), kernel, 1, 1, "shifts", how)
    return _batch_norm(y, scale, how)


# Shapes of width 1.0 at 256 pixels, 8 images: input, parameters.
LAYERS: dict[str, tuple[Layer, tuple[int, ...], tuple[int, ...]]] = {
    "depthwise, 128 x 128 x 64": (_depthwise(1), (8, 128, 128, 64), (3, 3, 1, 64)),
    "depthwise stride 2, 128 x 128 x 128": (_depthwise(2), (8, 128, 128, 128), (3, 3, 1, 128)),
    "BatchNorm + SiLU, 128 x 128 x 64": (_batch_norm, (8, 128, 128, 64), (64,)),
    "BatchNorm + SiLU, 32 x 32 x 256": (_batch_norm, (8, 32, 32, 256), (256,)),
    "GroupNorm, 32 x 32 x 128": (_group_norm, (8, 256, 4, 128), (128,)),
    "both around a depthwise, 128 x 128 x 64": (_between, (8, 128, 128, 64), (3, 3, 1, 64)),
}


def run(options: Any) -> Iterator[str]:
    """Yields one table for each layer: value and gradients."""
    yield environment() + "\n"
    for name, (layer, shape, parameters) in LAYERS.items():
        runs = {how: _run(layer, how, shape, parameters) for how in ("derived", "written")}
        yield table(f"8 x {name}", in_turns(runs, options.rounds), "derived")


def _run(layer: Layer, how: str, *shapes: tuple[int, ...]) -> Run:
    random = np.random.RandomState(0)
    x, parameters = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)

    def value_and_gradients(x: Any, parameters: Any) -> Any:
        y, pull = jax.vjp(lambda x, parameters: layer(x, parameters, how), x, parameters)
        return y, pull(jnp.cos(y))

    options = compiler_options(jax.devices())
    compiled = jax.jit(value_and_gradients, compiler_options=options).lower(x, parameters).compile()
    return lambda: jax.block_until_ready(compiled(x, parameters))
