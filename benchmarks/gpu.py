"""Forward pass and training step in bfloat16 on a GPU, beside timm's, and memory's share in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measure import Spread, environment, in_turns, table
from benchmarks.models import (
    Run,
    has_timm,
    our_forward,
    our_step,
    timm_forward,
    timm_step,
)

BATCHES = (256, 512)
FORMS = ("convolution", "shifts")
TIMES = 5
"""Steps that are asked for in a row, without waiting for one before the next, as in training."""


def run(options: Any) -> Iterator[str]:
    """Yields the tables, or says that there is no GPU."""
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        yield "no GPU: not run\n"
        return
    speed = copy_speed(options.rounds)
    yield f"{environment()}\n{device.device_kind}: copies {speed / 1e9:.0f} GB/s\n"
    for batch in (options.batch,) if options.batch else BATCHES:
        for title, ours, theirs in (
            ("forward", our_forward, timm_forward),
            ("training step", our_step, timm_step),
        ):
            made = {
                f"ours, depthwise as {form}": ours(
                    batch, options.size, times=TIMES, dtype="bfloat16", depthwise=form
                )
                for form in FORMS
            }
            runs: dict[str, Run] = {}
            if has_timm():
                runs["timm"] = theirs(
                    batch, options.size, compiled=True, device="cuda", times=TIMES
                )
            runs |= {name: call for name, (call, _) in made.items()}
            whole = in_turns(runs, options.rounds)
            measured = {name: [seconds / TIMES for seconds in whole[name]] for name in runs}
            yield table(f"{title}, {batch} images, bfloat16", measured, next(iter(runs)))
            for name, (_, compiled) in made.items():
                seconds = Spread.of(measured[name]).median
                traffic = compiled.cost_analysis()["bytes accessed"]
                rate = traffic / seconds
                yield (
                    f"  {name}: {traffic / batch / 1e6:.0f} MB an image, {rate / 1e9:.0f} GB/s, "
                    f"{rate / speed:.0%} of copies"
                )
            yield ""


def copy_speed(rounds: int) -> float:
    """Returns bytes per second, read and written, of an addition over 1 GiB."""
    x = jnp.zeros(1 << 28, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    measured = in_turns({"copy": lambda: jax.block_until_ready(add(x))}, rounds)
    return 2 * x.nbytes / min(measured["copy"])
