"""The lean form of a model: no BatchNorm, and one native convolution for each depthwise layer."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mobilevitv2_jax.models.attention import SeparableSelfAttention
from mobilevitv2_jax.models.layers import (
    BATCH_NORM_EPSILON,
    ConvNormAct,
    Convolution,
    Features,
    Pointwise,
)
from mobilevitv2_jax.models.normalization import Activation


class Shift(nnx.Module):
    """What is left of a folded BatchNorm: a bias of every channel."""

    def __init__(self, bias: np.ndarray) -> None:
        self.bias = nnx.Param(jnp.asarray(bias))

    def __call__(self, x: Features, act: Activation = None) -> Features:
        """Adds the bias and activates."""
        y = x + self.bias[...].astype(x.dtype)
        return y if act is None else act(y)


def lean(model: Any, convolved: bool = False) -> Any:
    """Returns a copy of a model in evaluation mode, in the form that is exported.

    Its outputs are the same but for rounding: BatchNorm's running statistics no longer move, so
    that scaling the channels can be left to the kernel of the convolution before it.

    Args:
        model: in float32.
        convolved: for runtimes of their own: matrix products are convolutions, and the sum of
            separable attention is no product of matrices.
    """
    copy = nnx.clone(model)
    for _, module in list(nnx.iter_modules(copy)):
        if isinstance(module, ConvNormAct):
            fold(module)
        if isinstance(module, Convolution) and module.depthwise is not None:
            module.depthwise = "convolution"
        if isinstance(module, SeparableSelfAttention):
            module.form = "plain" if convolved else "product"
        if isinstance(module, Pointwise):
            module.form = "convolution" if convolved else "product"
    return copy


def fold(block: ConvNormAct) -> None:
    """Folds the BatchNorm of a block into its convolution, in place; in float64, rounded once."""
    norm = block.normalization
    scale, bias, mean, variance = (
        np.asarray(x[...], np.float64) for x in (norm.scale, norm.bias, norm.mean, norm.variance)
    )
    factor = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
    kernel = block.convolution.kernel
    dtype = kernel[...].dtype
    # The output channel is the last axis of every kernel: pointwise, full and depthwise.
    kernel.set_value(jnp.asarray(np.asarray(kernel[...], np.float64) * factor, dtype))
    block.normalization = Shift(  # type: ignore[assignment]
        (bias - mean * factor).astype(dtype)
    )


def depthwise_layers(model: Any) -> int:
    """Returns how many depthwise convolutions a model has."""
    return sum(
        isinstance(module, Convolution) and module.depthwise is not None
        for _, module in nnx.iter_modules(model)
    )
