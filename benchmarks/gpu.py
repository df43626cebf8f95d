"""Forward pass and training step in bfloat16 on a GPU, beside timm's, and memory's share in it."""

from __future__ import annotations

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


def run(options: Any) -> str:
    """Returns the tables, or says that there is no GPU."""
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        return "no GPU: not run\n"
    speed = copy_speed(options.rounds)
    texts = [environment(), f"{device.device_kind}: copies {speed / 1e9:.0f} GB/s", ""]
    for batch in BATCHES:
        for title, ours, theirs in (
            ("forward", our_forward, timm_forward),
            ("training step", our_step, timm_step),
        ):
            made = {
                f"ours, depthwise as {form}": ours(
                    batch, options.size, dtype="bfloat16", depthwise=form
                )
                for form in FORMS
            }
            runs: dict[str, Run] = {}
            if has_timm():
                runs["timm"] = theirs(batch, options.size, compiled=True, device="cuda")
            runs |= {name: call for name, (call, _) in made.items()}
            measured = in_turns(runs, options.rounds)
            texts.append(table(f"{title}, {batch} images, bfloat16", measured, next(iter(runs))))
            for name, (_, compiled) in made.items():
                seconds = Spread.of(measured[name]).median
                rate = compiled.cost_analysis()["bytes accessed"] / seconds
                texts.append(f"  {name}: {rate / 1e9:.0f} GB/s, {rate / speed:.0%} of copies\n")
    return "\n".join(texts)


def copy_speed(rounds: int) -> float:
    """Returns bytes per second, read and written, of an addition over 1 GiB."""
    x = jnp.zeros(1 << 28, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    measured = in_turns({"copy": lambda: jax.block_until_ready(add(x))}, rounds)
    return 2 * x.nbytes / min(measured["copy"])
