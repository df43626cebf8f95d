"""Heads for semantic segmentation."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.layers import ConvNormAct, Features, Pointwise, statistics_dtype
from mobilevitv2_jax.models.resize import adaptive_average_pool, resize_bilinear

_PYRAMID = (1, 2, 3, 6)
"""Bins a side of the four poolings of PSPNet; the last is 6 x 6."""


class PooledBranch(nnx.Module):
    """The image's mean features, projected and laid over all positions."""

    def __init__(
        self, config: MobileViTV2Config, inputs: int, outputs: int, *, rngs: nnx.Rngs
    ) -> None:
        self.conv = ConvNormAct(config, inputs, outputs, act=jax.nn.relu, rngs=rngs)

    def __call__(self, x: Features) -> Features:
        """Applies the branch; resizing a single pixel is repeating it."""
        pooled = jnp.mean(x, (1, 2), keepdims=True, dtype=statistics_dtype(x)).astype(x.dtype)
        pooled = self.conv(pooled)
        return jnp.broadcast_to(pooled, (*x.shape[:3], pooled.shape[-1]))


class DeepLabV3(nnx.Module):
    """Atrous spatial pyramid pooling and a classifier of every position (arXiv 1706.05587).

    The activation is ReLU whatever the backbone's. Source: ml-cvnets
    `cvnets/models/segmentation/heads/deeplabv3.py`. Dropout follows Hugging Face: of elements
    after the projection (`aspp_dropout_prob`), then of channels (`classifier_dropout_prob`);
    the original has the second one alone.
    """

    def __init__(self, config: MobileViTV2Config, *, rngs: nnx.Rngs) -> None:
        assert config.num_labels is not None  # resolved when the config is made
        inputs, width = config.stage_channels[-1], config.aspp_out_channels
        self.branches = nnx.List(
            [
                ConvNormAct(config, inputs, width, act=jax.nn.relu, rngs=rngs),
                *(
                    ConvNormAct(
                        config,
                        inputs,
                        width,
                        kernel_size=3,
                        dilation=rate,
                        act=jax.nn.relu,
                        rngs=rngs,
                    )
                    for rate in config.atrous_rates
                ),
                PooledBranch(config, inputs, width, rngs=rngs),
            ]
        )
        self.project = ConvNormAct(config, 5 * width, width, act=jax.nn.relu, rngs=rngs)
        self.element_dropout = nnx.Dropout(config.aspp_dropout_prob)
        self.channel_dropout = nnx.Dropout(config.classifier_dropout_prob, broadcast_dims=(1, 2))
        self.classifier = Pointwise(config, width, config.num_labels, rngs=rngs)

    def __call__(self, x: Features, rngs: nnx.Rngs | None = None) -> Features:
        """Returns scores [batch, height, width, num_labels] at the size of the feature map."""
        x = self.project(jnp.concatenate([branch(x) for branch in self.branches], axis=-1))
        x = self.channel_dropout(self.element_dropout(x, rngs=rngs), rngs=rngs)
        return self.classifier(x)


class PyramidBranch(nnx.Module):
    """Means over a grid of rectangles, projected and resized to all positions.

    Args:
        config: shape and behaviour.
        inputs: channels of the feature map.
        outputs: channels of the projection.
        bins: rectangles a side.
        rngs: source of the initial weights.
    """

    def __init__(
        self, config: MobileViTV2Config, inputs: int, outputs: int, bins: int, *, rngs: nnx.Rngs
    ) -> None:
        self.bins = bins
        self.conv = ConvNormAct(config, inputs, outputs, act=jax.nn.relu, rngs=rngs)

    def __call__(self, x: Features) -> Features:
        """Applies the branch; the corners of the grid lie on those of the map."""
        pooled = adaptive_average_pool(x.astype(statistics_dtype(x)), self.bins).astype(x.dtype)
        return resize_bilinear(self.conv(pooled), x.shape[1:3], align_corners=True)


class PSPNet(nnx.Module):
    """Pyramid pooling and a classifier of every position (arXiv 1612.01105).

    The activation is ReLU whatever the backbone's; dropout is of channels
    (`classifier_dropout_prob`). Sources: ml-cvnets `cvnets/models/segmentation/heads/pspnet.py`
    and `cvnets/modules/pspnet_module.py`.
    """

    def __init__(self, config: MobileViTV2Config, *, rngs: nnx.Rngs) -> None:
        assert config.num_labels is not None  # resolved when the config is made
        inputs, width = config.stage_channels[-1], config.aspp_out_channels
        each = inputs // len(_PYRAMID) // 16 * 16
        self.pools = nnx.List(
            [PyramidBranch(config, inputs, each, bins, rngs=rngs) for bins in _PYRAMID]
        )
        joined = inputs + each * len(_PYRAMID)
        self.fuse = ConvNormAct(config, joined, width, kernel_size=3, act=jax.nn.relu, rngs=rngs)
        self.dropout = nnx.Dropout(config.classifier_dropout_prob, broadcast_dims=(1, 2))
        self.classifier = Pointwise(config, width, config.num_labels, rngs=rngs)

    def __call__(self, x: Features, rngs: nnx.Rngs | None = None) -> Features:
        """Returns scores [batch, height, width, num_labels] at the size of the feature map."""
        x = self.fuse(jnp.concatenate([x, *(pool(x) for pool in self.pools)], axis=-1))
        return self.classifier(self.dropout(x, rngs=rngs))


HEADS: dict[str, Callable[..., DeepLabV3 | PSPNet]] = {"deeplabv3": DeepLabV3, "pspnet": PSPNet}
"""By the name that `config.segmentation_head` has."""


class AuxiliaryHead(nnx.Module):
    """A small classifier on the features of stage 4, for training only.

    Source: ml-cvnets `cvnets/models/segmentation/heads/base_seg_head.py`.
    """

    def __init__(self, config: MobileViTV2Config, *, rngs: nnx.Rngs) -> None:
        assert config.num_labels is not None  # resolved when the config is made
        inputs = config.stage_channels[-2]
        width = max(inputs // 4, 128)
        self.conv = ConvNormAct(config, inputs, width, kernel_size=3, act=jax.nn.relu, rngs=rngs)
        self.dropout = nnx.Dropout(config.classifier_dropout_prob, broadcast_dims=(1, 2))
        self.classifier = Pointwise(config, width, config.num_labels, rngs=rngs)

    def __call__(self, x: Features, rngs: nnx.Rngs | None = None) -> Features:
        """Returns scores [batch, height, width, num_labels] at the size of the feature map."""
        return self.classifier(self.dropout(self.conv(x), rngs=rngs))
