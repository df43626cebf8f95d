"""Forward pass and training step in float32 on a CPU, beside timm's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.measure import environment, in_turns, table
from benchmarks.models import (
    CPU_BATCH,
    Run,
    has_timm,
    our_forward,
    our_step,
    timm_forward,
    timm_step,
)


def run(options: Any) -> Iterator[str]:
    """Yields the tables: forward of one image and of a batch, and the training step."""
    yield environment() + "\n"
    many = options.batch or CPU_BATCH
    for batch in (1, many):
        title = f"forward, {batch} x {options.size} x {options.size}"
        runs = {"ours": our_forward(batch, options.size)[0]}
        yield _compared(title, runs, timm_forward, batch, options)
    title = f"training step, {many} x {options.size} x {options.size}"
    runs = {"ours": our_step(many, options.size, dtype="float32")[0]}
    derived = {"dtype": "float32", "gradients": "derived"}
    runs["ours, gradients derived"] = our_step(many, options.size, **derived)[0]
    yield _compared(title, runs, timm_step, many, options)


def _compared(title: str, runs: dict[str, Run], make_theirs: Any, batch: int, options: Any) -> str:
    if not has_timm():
        return table(f"{title}; timm is not installed", in_turns(runs, options.rounds), "ours")
    theirs = {"timm": make_theirs(batch, options.size)}
    if options.torch_compile:
        theirs["timm, torch.compile"] = make_theirs(batch, options.size, compiled=True)
    return table(title, in_turns({**theirs, **runs}, options.rounds), "timm")
