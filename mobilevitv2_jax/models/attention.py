"""Separable self-attention: linear in the number of tokens (arXiv 2206.02680, section 3).

Tokens are arrays [batch, patches, pixels, channels]: `pixels` are the positions inside a patch,
each of which attends over the patches on its own. Nothing here has a rank above 4, because
converters for phones accept no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.layers import (
    ConvNormAct,
    Features,
    GroupNorm,
    Pointwise,
    StochasticDepth,
    activation,
    statistics_dtype,
)
from mobilevitv2_jax.models.platform import by_platform
from mobilevitv2_jax.models.resize import resize_bilinear

Tokens = Float[Array, "batch patches pixels channels"]


def unfold(x: Features, patch: int) -> Tokens:
    """Cuts a map, whose sides `patch` divides, into its patches.

    Patches and the pixels inside them are in reading order, as in `torch.nn.functional.unfold`.
    """
    batch, height, width, channels = x.shape
    # [batch * rows, pixel row, columns, pixel column * channels]
    x = x.reshape(batch * height // patch, patch, width // patch, patch * channels)
    return x.transpose(0, 2, 1, 3).reshape(batch, -1, patch * patch, channels)


def fold(tokens: Tokens, patch: int, height: int, width: int) -> Features:
    """Puts the patches of a height x width map back in place: the inverse of `unfold`."""
    batch, _, _, channels = tokens.shape
    x = tokens.reshape(batch * height // patch, width // patch, patch, patch * channels)
    return x.transpose(0, 2, 1, 3).reshape(batch, height, width, channels)


class SeparableSelfAttention(nnx.Module):
    """Weighs all patches by one learned score each, and gates every token by their sum.

    Source: section 3.2 of the paper; `LinearSelfAttention` of ml-cvnets
    `cvnets/layers/linear_attention.py`. There is no scaling by the square root of the width.
    """

    def __init__(self, config: MobileViTV2Config, channels: int, *, rngs: nnx.Rngs) -> None:
        # Columns of the kernel: one of the query, then the key, then the value.
        self.qkv = Pointwise(config, channels, 1 + 2 * channels, rngs=rngs)
        self.out = Pointwise(config, channels, channels, rngs=rngs)
        self.dropout = nnx.Dropout(config.attn_dropout)
        # "product", "plain", or "auto", resolved for the platform the program is compiled for.
        self.form = "auto"

    def __call__(self, x: Tokens, rngs: nnx.Rngs | None = None) -> Tokens:
        """Attends over the patches."""
        query, key, value = self._project(x)
        scores = jax.nn.softmax(query.astype(statistics_dtype(query)), axis=1)
        scores = self.dropout(scores, rngs=rngs).astype(key.dtype)
        return self.out(jax.nn.relu(value) * self._weighted_sum(key, scores))

    def _project(self, x: Tokens) -> tuple[Tokens, Tokens, Tokens]:
        channels = x.shape[-1]

        def together(x: Tokens) -> tuple[Tokens, Tokens, Tokens]:
            query, key, value = jnp.split(self.qkv(x), (1, 1 + channels), axis=-1)
            return query, key, value

        def apart(x: Tokens) -> tuple[Tokens, Tokens, Tokens]:
            # A GPU multiplies matrices with an odd number of columns at half the speed.
            key, value = jnp.split(self.qkv(x, slice(1, None)), 2, axis=-1)
            return self.qkv(x, slice(1)), key, value

        if self.form == "auto":
            return by_platform(x, cpu=together, tpu=together, default=apart)
        return together(x)

    def _weighted_sum(self, key: Tokens, scores: Tokens) -> Tokens:
        def product(key: Tokens, scores: Tokens) -> Tokens:
            # XLA:CPU would take a plain sum into the product with the values that follows it, and
            # sum anew for each tile of that, quadratically in tokens.
            return jnp.einsum("bnpc,bnp->bpc", key, scores[..., 0])[:, None]

        def plain(key: Tokens, scores: Tokens) -> Tokens:
            # As a product a GPU would transpose the tokens first.
            return (key * scores).sum(axis=1, keepdims=True)

        if self.form == "auto":
            return by_platform(key, scores, cpu=product, tpu=product, default=plain)
        return (plain if self.form == "plain" else product)(key, scores)


class FeedForward(nnx.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, config: MobileViTV2Config, channels: int, *, rngs: nnx.Rngs) -> None:
        hidden = int(config.ffn_multiplier * channels // 16 * 16)
        self.up = Pointwise(config, channels, hidden, rngs=rngs)
        self.down = Pointwise(config, hidden, channels, rngs=rngs)
        self.dropout = nnx.Dropout(config.ffn_dropout)
        self.act = activation(config)

    def __call__(self, x: Tokens, rngs: nnx.Rngs | None = None) -> Tokens:
        """Applies the maps to every token."""
        x = self.dropout(self.act(self.up(x)), rngs=rngs)
        return self.dropout(self.down(x), rngs=rngs)


class AttentionLayer(nnx.Module):
    """Pre-normalised attention and feed-forward, each added to its input.

    The first version of the network has another normalisation and attention: see `mobilevit.py`.
    """

    def __init__(
        self,
        config: MobileViTV2Config,
        channels: int,
        *,
        drop_rate: float = 0.0,
        norm: Callable[..., nnx.Module] = GroupNorm,
        attention: Callable[..., nnx.Module] = SeparableSelfAttention,
        rngs: nnx.Rngs,
    ) -> None:
        self.attention_norm: Any = norm(config, channels)
        self.attention: Any = attention(config, channels, rngs=rngs)
        self.feed_forward_norm: Any = norm(config, channels)
        self.feed_forward = FeedForward(config, channels, rngs=rngs)
        self.drop = StochasticDepth(drop_rate)

    def __call__(self, x: Tokens, rngs: nnx.Rngs | None = None) -> Tokens:
        """Applies the layer."""
        x = x + self.drop(self.attention(self.attention_norm(x), rngs), rngs=rngs)
        return x + self.drop(self.feed_forward(self.feed_forward_norm(x), rngs), rngs=rngs)


class MobileViTV2Block(nnx.Module):
    """Local convolution, then attention layers over patches, then a projection; no skip around.

    Source: section 3.3 of the paper; `MobileViTBlockv2` of ml-cvnets
    `cvnets/modules/mobilevit_block.py`.
    """

    def __init__(
        self,
        config: MobileViTV2Config,
        channels: int,
        attention_channels: int,
        *,
        layers: int,
        dilation: int = 1,
        drop_rates: Sequence[float] | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.local = ConvNormAct(
            config,
            channels,
            channels,
            kernel_size=config.conv_kernel_size,
            dilation=dilation,
            per_channel=True,
            act=activation(config),
            rngs=rngs,
        )
        self.enter = Pointwise(config, channels, attention_channels, bias=False, rngs=rngs)
        self.layers = nnx.List(
            [
                AttentionLayer(config, attention_channels, drop_rate=rate, rngs=rngs)
                for rate in drop_rates or [0.0] * layers
            ]
        )
        self.norm = GroupNorm(config, attention_channels)
        self.project = ConvNormAct(config, attention_channels, channels, rngs=rngs)
        self.patch_size = config.patch_size
        self.odd_size_rule = config.odd_size_rule

    def __call__(self, x: Features, rngs: nnx.Rngs | None = None) -> Features:
        """Applies the block; see `odd_size_rule` for sides that the patch does not divide.

        Raises:
            ValueError: under the rule "drop", if the map is smaller than one patch.
        """
        patch = self.patch_size
        height, width = x.shape[1:3]
        rows, columns = -(-height // patch) * patch, -(-width // patch) * patch
        divisible = (rows, columns) == (height, width)
        if not divisible and self.odd_size_rule != "drop":
            x = resize_bilinear(x, (rows, columns), align_corners=True)

        x = self.enter(self.local(x))
        if not divisible and self.odd_size_rule == "drop":
            rows, columns = height // patch * patch, width // patch * patch
            if not rows or not columns:
                raise ValueError(
                    f"odd_size_rule='drop' needs feature maps of at least {patch}x{patch}, "
                    f"got {height}x{width}: use a larger image or another rule"
                )
            x = x[:, :rows, :columns]
        x = unfold(x, patch)
        for layer in self.layers:
            x = layer(x, rngs)
        x = fold(self.norm(x), patch, rows, columns)
        if not divisible and self.odd_size_rule == "drop":
            x = jnp.pad(x, ((0, 0), (0, height - rows), (0, width - columns), (0, 0)))
        x = self.project(x)

        if not divisible and self.odd_size_rule == "resize_back":
            x = resize_bilinear(x, (height, width), align_corners=True)
        return x
