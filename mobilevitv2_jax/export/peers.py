"""Hugging Face's model with the same weights, where it is installed: for its latency alone."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

_NEEDED = ("torch", "transformers", "safetensors")


def huggingface(
    model: Any, pixels: Float[np.ndarray, "batch height width channels"], threads: int
) -> dict[str, Callable[[], Any]]:
    """Returns what runs Hugging Face's model once, eager and compiled, by name.

    Args:
        model: ours, whose weights it takes.
        pixels: what it is shown, as `model` takes it.
        threads: of PyTorch.

    Returns:
        Nothing where PyTorch or transformers are missing; no compiled one without a C++ compiler,
        which `torch.compile` needs.
    """
    if not all(importlib.util.find_spec(name) for name in _NEEDED):
        return {}
    import torch
    import transformers

    torch.set_num_threads(threads)
    kind = type(model).__name__
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        theirs = getattr(transformers, kind).from_pretrained(directory).eval()
    theirs = theirs.to(memory_format=torch.channels_last)
    x = torch.from_numpy(np.asarray(pixels, np.float32).transpose(0, 3, 1, 2).copy())
    x = x.contiguous(memory_format=torch.channels_last)

    def calling(function: Callable[..., Any]) -> Callable[[], Any]:
        def call() -> Any:
            with torch.inference_mode():
                return function(pixel_values=x).logits

        return call

    calls = {"Hugging Face": calling(theirs)}
    if any(map(shutil.which, ("g++", "clang++"))):
        calls["Hugging Face, torch.compile"] = calling(torch.compile(theirs))
    return calls
