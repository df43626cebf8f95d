"""MobileViT-S, the first version (arXiv 2110.02178): what separable attention is measured against.

For inference only. Modules that both versions have are those of MobileViTV2. What differs:
attention has heads and a score for every pair of patches; normalisation is over the channels of
each token; local convolutions are full ones; a last convolution joins the block's input to its
output.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mobilevitv2_jax.models.attention import AttentionLayer, Tokens, fold, unfold
from mobilevitv2_jax.models.backbone import pool
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.layers import (
    ConvNormAct,
    Features,
    InvertedResidual,
    Pointwise,
    activation,
    statistics_dtype,
)
from mobilevitv2_jax.models.resize import resize_bilinear

# Source: table 4 of the paper, and the defaults of Hugging Face's `MobileViTConfig`.
STEM, EXPANDED, HEADS = 16, 640, 4
STAGES = ((32, 1), (64, 3))
"""Channels and inverted residuals of stages 1 and 2."""
ATTENTION_STAGES = ((96, 144, 2), (128, 192, 4), (160, 240, 3))
"""Channels, attention channels and attention layers of stages 3, 4 and 5."""


class LayerNorm(nnx.Module):
    """Normalises each token over its channels."""

    def __init__(self, config: MobileViTV2Config, channels: int) -> None:
        dtype = jnp.dtype(config.param_dtype)
        self.scale = nnx.Param(jnp.ones(channels, dtype))
        self.bias = nnx.Param(jnp.zeros(channels, dtype))
        self.epsilon = config.layer_norm_eps

    def __call__(self, x: Tokens) -> Tokens:
        """Normalises by mean and variance of the last axis."""
        dtype = x.dtype
        x = x.astype(statistics_dtype(x))
        y = jax.nn.standardize(x, axis=-1, epsilon=self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(dtype)


class MultiHeadAttention(nnx.Module):
    """Scaled dot products of every patch with every other: quadratic in the number of patches."""

    def __init__(
        self, config: MobileViTV2Config, channels: int, heads: int = HEADS, *, rngs: nnx.Rngs
    ) -> None:
        self.query = Pointwise(config, channels, channels, rngs=rngs)
        self.key = Pointwise(config, channels, channels, rngs=rngs)
        self.value = Pointwise(config, channels, channels, rngs=rngs)
        self.out = Pointwise(config, channels, channels, rngs=rngs)
        self.heads = heads

    def __call__(self, x: Tokens, rngs: nnx.Rngs | None = None) -> Tokens:
        """Attends over the patches, for each pixel of a patch on its own; draws nothing."""
        batch, patches, pixels, channels = x.shape
        x = x.transpose(0, 2, 1, 3).reshape(batch * pixels, patches, channels)
        query, key, value = (
            layer(x).reshape(*x.shape[:2], self.heads, channels // self.heads)
            for layer in (self.query, self.key, self.value)
        )
        context = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        y = self.out(context).reshape(batch, pixels, patches, channels)
        return y.transpose(0, 2, 1, 3)


class MobileViTBlock(nnx.Module):
    """Local convolution, attention layers over patches, and a convolution over both.

    Source: section 3.1 of the paper; `MobileViTLayer` of Hugging Face transformers.
    """

    def __init__(
        self,
        config: MobileViTV2Config,
        channels: int,
        attention_channels: int,
        layers: int,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        size, act = config.conv_kernel_size, activation(config)
        self.local = ConvNormAct(config, channels, channels, kernel_size=size, act=act, rngs=rngs)
        self.enter = Pointwise(config, channels, attention_channels, bias=False, rngs=rngs)
        self.layers = nnx.List(
            [
                AttentionLayer(
                    config,
                    attention_channels,
                    norm=LayerNorm,
                    attention=MultiHeadAttention,
                    rngs=rngs,
                )
                for _ in range(layers)
            ]
        )
        self.norm = LayerNorm(config, attention_channels)
        self.project = ConvNormAct(config, attention_channels, channels, act=act, rngs=rngs)
        self.fuse = ConvNormAct(
            config, 2 * channels, channels, kernel_size=size, act=act, rngs=rngs
        )
        self.patch_size = config.patch_size

    def __call__(self, features: Features) -> Features:
        """Applies the block; maps that the patch does not divide are resized up and back."""
        patch, (height, width) = self.patch_size, features.shape[1:3]
        rows, columns = -(-height // patch) * patch, -(-width // patch) * patch
        x = self.enter(self.local(features))
        x = unfold(resize_bilinear(x, (rows, columns), align_corners=False), patch)
        for layer in self.layers:
            x = layer(x)
        x = fold(self.norm(x), patch, rows, columns)
        x = self.project(resize_bilinear(x, (height, width), align_corners=False))
        return self.fuse(jnp.concatenate([features, x], axis=-1))


class MobileViT(nnx.Module):
    """MobileViT-S with its classifier, in evaluation mode.

    Args:
        config: what the modules of both versions ask for: types, form of depthwise convolutions,
            number of classes. Widths are those of this version, whatever it says.
        rngs: source of the initial weights.
    """

    def __init__(self, config: MobileViTV2Config, *, rngs: nnx.Rngs) -> None:
        config = config.replace(expand_ratio=4.0, ffn_multiplier=2)
        act = activation(config)
        self.stem = ConvNormAct(
            config, config.num_channels, STEM, kernel_size=3, stride=2, act=act, rngs=rngs
        )
        stages: list[nnx.List] = []
        inputs = STEM
        for number, (channels, blocks) in enumerate(STAGES):
            widths = [inputs] + [channels] * blocks
            strides = [1 + (number > 0)] + [1] * (blocks - 1)
            stages.append(
                nnx.List(
                    [
                        InvertedResidual(config, before, after, stride=stride, rngs=rngs)
                        for before, after, stride in zip(widths, widths[1:], strides, strict=False)
                    ]
                )
            )
            inputs = channels
        for channels, attention_channels, layers in ATTENTION_STAGES:
            blocks_of_stage: list[nnx.Module] = [
                InvertedResidual(config, inputs, channels, stride=2, rngs=rngs),
                MobileViTBlock(config, channels, attention_channels, layers, rngs=rngs),
            ]
            stages.append(nnx.List(blocks_of_stage))
            inputs = channels
        self.stages = nnx.List(stages)
        self.expand = ConvNormAct(config, inputs, EXPANDED, act=act, rngs=rngs)
        assert config.num_labels is not None  # resolved when the config is made
        self.classifier = Pointwise(config, EXPANDED, config.num_labels, rngs=rngs)
        self.eval()

    def __call__(
        self, pixel_values: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch num_labels"]:
        """Returns the logits of images in [0, 1], channels last; its weights want BGR."""
        x = self.stem(pixel_values)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.classifier(pool(self.expand(x)))
