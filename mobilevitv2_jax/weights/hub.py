"""Weights on the Hugging Face hub, through `huggingface_hub` (the extra `hub`)."""

from __future__ import annotations

import re

from etils import epath

from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.weights import tensors

_TEXTS = ["config.json", "preprocessor_config.json"]
_WEIGHTS = (
    ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"],
    # Some repositories hold nothing else.
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"],
)


def is_identifier(path: epath.PathLike) -> bool:
    """Returns whether this may be a repository such as apple/mobilevitv2-1.0-imagenet1k-256."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path)))


def download(identifier: str) -> epath.Path:
    """Returns the directory of a repository, downloaded now or before.

    Raises:
        WeightsError: if it cannot be had, with the command that downloads it elsewhere.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise WeightsError(
            f"{identifier} does not exist here; to read it from the Hugging Face hub, install "
            'huggingface_hub: pip install "mobilevitv2-jax[hub]"'
        ) from None
    try:
        for weights in _WEIGHTS:
            directory = epath.Path(
                huggingface_hub.snapshot_download(identifier, allow_patterns=[*_TEXTS, *weights])
            )
            # By name: what was downloaded before, such as a README, lies there, too.
            if any((directory / name).exists() for name in tensors.USUAL):
                return directory
    except Exception as error:  # of the network, of the hub, of the disk: whatever it was
        raise WeightsError(
            f"{identifier} does not exist here, and could not be had from the Hugging Face hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). Where "
            f"there is a network, `hf download {identifier} --local-dir DIR` writes a directory "
            "that is read here"
        ) from error
    raise WeightsError(f"{identifier} on the Hugging Face hub holds no weights that are read")
