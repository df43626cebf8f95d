"""Time and memory against the number of tokens: separable attention, and that of MobileViT v1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import mobilevitv2_jax as mv
from benchmarks.measure import Measured, Spread, environment, in_turns
from benchmarks.models import NAME, Run
from mobilevitv2_jax.models.attention import SeparableSelfAttention
from mobilevitv2_jax.models.mobilevit import MobileViT, MultiHeadAttention

SIZES = (256, 384, 512, 768, 1024)
CHANNELS, PATCH, STRIDE = 128, 2, 8
"""Those of stage 3 at width 1.0, whose map has the most tokens."""

_LAYERS = {
    "separable attention": SeparableSelfAttention,
    "multi-head attention": MultiHeadAttention,
}
_NETWORKS = {
    f"{NAME}, whole": lambda config: mv.create_model(NAME),
    "mobilevit_s, whole": lambda config: MobileViT(config, rngs=nnx.Rngs(0)),
}


def run(options: Any) -> Iterator[str]:
    """Yields one table for the attention alone, and one for whole models, of one image."""
    config = mv.MobileViTV2Config(num_labels=1000)
    alone = {name: make(config, CHANNELS, rngs=nnx.Rngs(0)) for name, make in _LAYERS.items()}
    whole = {name: make(config) for name, make in _NETWORKS.items()}
    curves: dict[str, list[float]] = {}
    yield environment() + "\n"
    for title, modules, shape in (
        (f"attention of stage 3, {CHANNELS} channels", alone, _tokens),
        ("forward pass, one image", whole, lambda size: (1, size, size, 3)),
    ):
        text, found = _table(title, modules, shape, options.rounds)
        curves |= found
        yield text
    if options.plot:
        _plot(curves, options.plot)


def _tokens(size: int) -> tuple[int, int, int, int]:
    """Returns the shape of the tokens of an image: [batch, patches, pixels, channels]."""
    return (1, (size // STRIDE // PATCH) ** 2, PATCH**2, CHANNELS)


def growth(tokens: Sequence[float], seconds: Sequence[float]) -> float:
    """Returns the exponent e of seconds ~ tokens ** e that fits best."""
    return float(np.polyfit(np.log(tokens), np.log(seconds), 1)[0])


def _table(
    title: str, modules: dict[str, nnx.Module], shape: Any, rounds: int
) -> tuple[str, dict[str, list[float]]]:
    measured: dict[int, Measured] = {}
    memory: dict[int, dict[str, int]] = {}
    for size in SIZES:
        made = {name: _compile(module, shape(size)) for name, module in modules.items()}
        measured[size] = in_turns({name: call for name, (call, _) in made.items()}, rounds)
        memory[size] = {name: count for name, (_, count) in made.items()}
    patches = [math.prod(_tokens(size)[1:3]) for size in SIZES]
    lines, curves = [title], {}
    for name in modules:
        medians = [Spread.of(measured[size][name]).median for size in SIZES]
        curves[name] = medians
        exponent = growth(patches[1:], medians[1:])
        lines.append(f"  {name}: time grows as tokens ** {exponent:.2f} from {SIZES[1]} pixels on")
        for size in SIZES:
            spread = Spread.of([1e3 * value for value in measured[size][name]])
            lines.append(f"    {size:5} px  {spread:.1f} ms, {memory[size][name] / 1e6:.1f} MB")
    return "\n".join(lines) + "\n", curves


def _compile(module: nnx.Module, shape: tuple[int, ...]) -> tuple[Run, int]:
    """Returns the module on an input of a shape, and the bytes of its temporaries."""
    module.eval()
    graph, state = nnx.split(module)
    x = jnp.asarray(np.random.RandomState(0).uniform(size=shape), jnp.float32)
    forward = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    compiled = forward.lower(state, x).compile()
    count = compiled.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(compiled(state, x)), count


def _plot(curves: dict[str, list[float]], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, seconds in curves.items():
        axes.loglog(SIZES, [1e3 * value for value in seconds], marker="o", label=name)
    axes.set_xticks(SIZES, map(str, SIZES))
    axes.minorticks_off()
    axes.set(xlabel="side of the image, pixels", ylabel="milliseconds")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)
