"""The other implementations, live: needs torch, transformers and timm (the `oracle` extra).

Importing this skips the tests of a module where they are missing; MOBILEVITV2_REQUIRE_ORACLES=1
makes that a failure.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
import pytest
from reference_weights import reference_weights, shapes_of

from benchmarks.peers import repair_torchvision

REQUIRED = os.environ.get("MOBILEVITV2_REQUIRE_ORACLES") == "1"


def _oracle(name: str) -> Any:
    return importlib.import_module(name) if REQUIRED else pytest.importorskip(name)


torch = _oracle("torch")
repair_torchvision()
transformers = _oracle("transformers")


def huggingface(kind: str = "ForImageClassification", *arguments: Any, **fields: Any) -> Any:
    """Returns Hugging Face's model, in evaluation mode, with the reference weights."""
    config = transformers.MobileViTV2Config(**fields)
    model = getattr(transformers, f"MobileViTV2{kind}")(config, *arguments).eval()
    weights = reference_weights(shapes_of(model.state_dict()))
    model.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()})
    return model


def state_of(module: Any) -> dict[str, np.ndarray]:
    """Returns the module's parameters and buffers."""
    return {key: tensor.numpy() for key, tensor in module.state_dict().items()}


def channels_first(x: np.ndarray) -> Any:
    """Returns images as torch's models take them."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def channels_last(x: Any) -> np.ndarray:
    """Returns a feature map as ours are laid out."""
    return x.detach().permute(0, 2, 3, 1).contiguous().numpy()


def run(model: Any, images: np.ndarray) -> tuple[Any, Any, list[np.ndarray]]:
    """Returns a classifier's logits, pooled features, and feature maps (channels last)."""
    pooled = []
    hook = model.mobilevitv2.register_forward_hook(
        lambda module, inputs, output: pooled.append(output.pooler_output)
    )
    pixels = channels_first(images).to(next(model.parameters()).dtype)
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
    hook.remove()
    return output.logits, pooled[0], [channels_last(x) for x in output.hidden_states]


def loss_of(model: Any, logits: Any, problem_type: str, targets: np.ndarray) -> Any:
    """Returns the loss that Hugging Face's classifier computes from its logits."""
    model.config.problem_type = problem_type
    labels = torch.from_numpy(targets)
    if labels.is_floating_point():
        labels = labels.to(logits.dtype)
    return model.loss_function(labels, logits, model.config)
