"""Writes outputs of the peers' models, with which the default tests compare ours.

    python tests/golden/make_golden.py

`huggingface.npz` holds Hugging Face's classifier at every width, `conventions.npz` the cases in
which the peers differ, `processing.npz` pixels of Hugging Face's image processor. It needs torch,
transformers and timm (the `oracle` extra) and some minutes. The references run in float64, on
weights that are exact in float32; their outputs are rounded to float32 in the end.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
import torch

sys.path[:0] = map(str, pathlib.Path(__file__).parents[1:3])  # tests/, and benchmarks/ beside it

from oracle.cases import GOLDEN  # noqa: E402
from oracle.comparison import reference_outputs, timm  # noqa: E402
from oracle.test_processing import FILE as PROCESSING  # noqa: E402
from oracle.test_processing import their_processor  # noqa: E402
from processing_cases import GOLDEN as PICTURES  # noqa: E402
from processing_cases import picture  # noqa: E402
from reference_torch import (  # noqa: E402
    channels_first,
    channels_last,
    huggingface,
    loss_of,
    run,
    transformers,
)
from reference_weights import (  # noqa: E402
    LABELS,
    SIZES,
    WIDTHS,
    digest,
    reference_images,
    reference_labels,
)

FILE = pathlib.Path(__file__).with_name("huggingface.npz")
CONVENTIONS = pathlib.Path(__file__).with_name("conventions.npz")


def outputs(model: Any, size: tuple[int, int], labels: int) -> dict[str, np.ndarray]:
    """Returns the digest of the model's outputs at one image size."""
    logits, pooled, maps = run(model, reference_images(size))
    losses = {
        problem_type: loss_of(model, logits, problem_type, targets)
        for problem_type, targets in reference_labels(labels).items()
    }
    return digest(logits, pooled, losses, maps)


def require_attention_matters(model: Any) -> None:
    """Stops the script unless each attention branch moves the logits by more than 1 %."""
    pixels = channels_first(reference_images(SIZES[0])).double()
    reference = model(pixels).logits
    for name, module in model.named_modules():
        if name.endswith("attention"):
            handle = module.register_forward_hook(lambda module, inputs, output: 0 * output)
            moved = (model(pixels).logits - reference).abs().max() / reference.abs().max()
            handle.remove()
            if moved <= 0.01:
                raise SystemExit(f"{name} moves the logits by {moved:.2%} only")


def conventions() -> dict[str, np.ndarray]:
    """Returns the digests of the cases in which the peers' rules act."""
    kept = {"torch": torch.__version__, "timm": timm.__version__}
    for case in GOLDEN:
        reference = reference_outputs(case, double=True)
        logits, *maps = reference.values()
        digested = digest(logits, maps[-1].mean((1, 2)), {}, maps)
        kept |= {f"{case.name}/{key}": x for key, x in digested.items()}
    return kept


def pixels() -> dict[str, np.ndarray]:
    """Returns bytes, channels last, as Hugging Face's processor cuts them out."""
    kept = {}
    for name, (size, rules) in PICTURES.items():
        processor = their_processor(**rules, do_rescale=False)
        kept[name] = channels_last(processor(picture(size), return_tensors="pt")["pixel_values"])[0]
    return kept


@torch.no_grad()
def main() -> None:
    """Writes the files."""
    np.savez_compressed(PROCESSING, **pixels())
    np.savez_compressed(CONVENTIONS, **conventions())
    kept = {"torch": torch.__version__, "transformers": transformers.__version__}
    for width, labels in [(width, LABELS) for width in WIDTHS] + [(1.0, 1000)]:
        model = huggingface(width_multiplier=width, num_labels=labels).double()
        for size in SIZES if labels == LABELS else SIZES[:1]:
            name = f"{width}/{labels}/{size[0]}x{size[1]}"
            kept |= {f"{name}/{key}": x for key, x in outputs(model, size, labels).items()}
        require_attention_matters(model)
    np.savez_compressed(FILE, **kept)


if __name__ == "__main__":
    main()
