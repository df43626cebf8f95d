"""Heads for semantic segmentation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.layers import ConvNormAct, Features, Pointwise, statistics_dtype


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
