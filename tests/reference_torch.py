"""The other implementations, live: needs torch, transformers and timm (the `oracle` extra)."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import torch
from reference_weights import reference_weights, shapes_of


def _repair_torchvision() -> None:
    """Makes torchvision importable where it was built for another torch.

    The package index has torchvision for CUDA only. Beside a torch for the CPU its operators do
    not load and its import fails at two of their names; nothing here uses them.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        sys.modules["torchvision_operators"] = library  # type: ignore[assignment] # kept alive
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    except ImportError:
        pass


_repair_torchvision()
transformers: Any = importlib.import_module("transformers")


def huggingface(kind: str = "ForImageClassification", *arguments: Any, **fields: Any) -> Any:
    """Returns Hugging Face's model, in evaluation mode, with the reference weights."""
    config = transformers.MobileViTV2Config(**fields)
    model = getattr(transformers, f"MobileViTV2{kind}")(config, *arguments).eval()
    weights = reference_weights(shapes_of(model.state_dict()))
    model.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()})
    return model


def state_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns the module's parameters and buffers."""
    return {key: tensor.numpy() for key, tensor in module.state_dict().items()}


def channels_first(x: np.ndarray) -> torch.Tensor:
    """Returns images as torch's models take them."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def channels_last(x: torch.Tensor) -> np.ndarray:
    """Returns a feature map as ours are laid out."""
    return x.detach().permute(0, 2, 3, 1).contiguous().numpy()


def loss_of(model: Any, pixels: torch.Tensor, problem_type: str, targets: np.ndarray) -> Any:
    """Returns the model's output, hidden states included, with the loss of that problem type."""
    model.config.problem_type = problem_type
    labels = torch.from_numpy(targets)
    if labels.is_floating_point():
        labels = labels.to(pixels.dtype)
    return model(pixels, labels=labels, output_hidden_states=True)
