"""One step in training mode, ours and a torch model's, both in float64.

    JAX_ENABLE_X64=1 python tests/oracle/training_step.py NAME

prints the relative error of the loss, of every gradient and of every running statistic as JSON.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

sys.path[:0] = map(str, pathlib.Path(__file__).parents[1:3])  # tests/, and benchmarks/ beside it

import jax  # noqa: E402
import numpy as np  # noqa: E402
from oracle.cases import RULES  # noqa: E402
from oracle.comparison import KINDS, our_model, timm_model  # noqa: E402
from reference_torch import channels_first, huggingface, state_of, torch  # noqa: E402
from reference_weights import LABELS, reference_images  # noqa: E402

import mobilevitv2_jax as mv  # noqa: E402
from mobilevitv2_jax.models import functional  # noqa: E402
from mobilevitv2_jax.models.platform import traced_for  # noqa: E402

BATCH = 4
SMALL = {"width_multiplier": 0.5, "num_labels": LABELS, "n_attn_blocks": (1, 1, 1)}
HEAD = {
    "output_stride": 16,
    "aspp_out_channels": 64,
    "aspp_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.0,
}
# Peer, task, fields, size. The last map of 96x80 is 3 x 3: there the rules of odd sizes act.
STEPS: dict[str, tuple[str, str, dict[str, Any], tuple[int, int]]] = {
    "huggingface-classification": ("huggingface", "classification", SMALL, (96, 80)),
    "huggingface-segmentation": ("huggingface", "segmentation", {**SMALL, **HEAD}, (128, 128)),
    "timm-classification": (
        "timm",
        "classification",
        {"width_multiplier": 0.5, "num_labels": LABELS},
        (96, 80),
    ),
}


def our_step(
    model: Any, images: np.ndarray, labels: np.ndarray, source: str
) -> tuple[float, dict[str, np.ndarray]]:
    """Returns the loss, and gradients and statistics under the source's keys."""
    graphs, parameters, statistics = functional.split(model)

    @jax.jit
    def step(parameters: Any, statistics: Any, images: Any, labels: Any) -> Any:
        def loss(parameters: Any) -> Any:
            model = functional.merge(graphs.train, parameters, statistics)
            return model(images, labels).loss, functional.arrays(model)[1]

        return jax.value_and_grad(loss, has_aux=True)(parameters)

    (loss, moved), gradients = step(parameters, statistics, images, labels)
    after = functional.merge(graphs.evaluation, gradients, moved)
    return float(loss), mv.weights.state_dict(after, source)


def errors(name: str) -> dict[str, float]:
    """Returns the relative errors of one of `STEPS`."""
    peer, task, fields, size = STEPS[name]
    images = reference_images(size, batch=BATCH).astype(np.float64)
    pixels = channels_first(images)
    labels = np.array([1, 7, 3, 3])
    if task == "segmentation":
        labels = np.random.RandomState(1).randint(0, LABELS, (BATCH, *size))
        labels[:, :30] = 255
    if peer == "timm":
        theirs = timm_model(0.5).double().train()
        their_loss = torch.nn.functional.cross_entropy(theirs(pixels), torch.from_numpy(labels))
    else:
        theirs = huggingface(KINDS[task], **fields).double().train()
        their_loss = theirs(pixels, labels=torch.from_numpy(labels)).loss
    their_loss.backward()

    types = {"dtype": "float64", "param_dtype": "float64"}
    model = our_model(task, **fields, **RULES[peer], **types)
    with traced_for("cpu"):
        loss, ours = our_step(model, images, labels, "timm" if peer == "timm" else "hf")

    gradients = {key: x.grad.numpy() for key, x in theirs.named_parameters()}
    largest = max(np.abs(x).max() for x in gradients.values())
    found = {"loss": abs(loss / their_loss.item() - 1)}
    for key, reference in {**state_of(theirs), **gradients}.items():
        if not key.endswith("num_batches_tracked"):
            scale = np.abs(reference).max()
            scale = max(scale, 1e-3 * largest) if key in gradients else scale
            found[key] = float(np.abs(ours.pop(key) - reference).max() / scale)
    assert all(key.endswith("num_batches_tracked") for key in ours)
    return found


if __name__ == "__main__":
    print(json.dumps(errors(sys.argv[1])))
