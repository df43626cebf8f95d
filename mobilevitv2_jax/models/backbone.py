"""The backbone: a stem and five stages, after table 6 of arXiv 2206.02680."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mobilevitv2_jax.models.attention import MobileViTV2Block
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.layers import (
    ConvNormAct,
    Features,
    InvertedResidual,
    activation,
    statistics_dtype,
)
from mobilevitv2_jax.models.outputs import BackboneOutput
from mobilevitv2_jax.models.pretrained import Pretrained


def stage_dilations(output_stride: int) -> tuple[int, int, int]:
    """Returns the dilation of stages 3, 4 and 5; a dilated stage does not downsample."""
    return {32: (1, 1, 1), 16: (1, 1, 2), 8: (1, 2, 4)}[output_stride]


def _attention_stage(
    config: MobileViTV2Config, index: int, inputs: int, outputs: int, rngs: nnx.Rngs
) -> nnx.List:
    """Returns stage `index` (2, 3 or 4, from 0): a downsampling block and an attention block."""
    dilation = stage_dilations(config.output_stride)[index - 2]
    return nnx.List(
        [
            InvertedResidual(
                config,
                inputs,
                outputs,
                stride=2 if dilation == 1 else 1,
                dilation=max(dilation // 2, 1),
                rngs=rngs,
            ),
            MobileViTV2Block(
                config,
                outputs,
                config.attention_channels[index - 2],
                layers=config.n_attn_blocks[index - 2],
                dilation=dilation if config.dilation_rule == "cvnets" else 1,
                rngs=rngs,
            ),
        ]
    )


def _apply(block: Any, x: Features, rngs: nnx.Rngs | None) -> Features:
    return block(x, rngs)


def rematerialized(block: Any, x: Features, rngs: nnx.Rngs | None) -> Features:
    """Returns `block(x, rngs)`, whose gradient will compute the block again.

    What the block changes (BatchNorm statistics, counters of random streams) passes through
    the checkpointed function as a value, and changes once.
    """
    graph, state = nnx.split((block, rngs))

    @jax.checkpoint
    def apply(state: Any, x: Features) -> tuple[Features, Any]:
        block, rngs = nnx.merge(graph, state)
        y = block(x, rngs)
        return y, nnx.state((block, rngs), nnx.Not(nnx.Param))

    y, changed = apply(state, x)
    nnx.update((block, rngs), changed)
    return y


class MobileViTV2Model(Pretrained):
    """MobileViTV2 without a head.

    A new model is in training mode; `model.eval()` makes BatchNorm use its running statistics
    and turns dropout off, `model.train()` goes back.

    Args:
        config: shape and behaviour.
        expand_output: also return the pooled features.
        rngs: source of the initial weights.
    """

    def __init__(
        self, config: MobileViTV2Config, expand_output: bool = True, *, rngs: nnx.Rngs
    ) -> None:
        stem, (first, second, third, fourth, fifth) = config.stem_channels, config.stage_channels
        self.config = config
        self.expand_output = expand_output
        self.stem = ConvNormAct(
            config,
            config.num_channels,
            stem,
            kernel_size=3,
            stride=2,
            act=activation(config),
            rngs=rngs,
        )
        self.stages = nnx.List(
            [
                nnx.List([InvertedResidual(config, stem, first, rngs=rngs)]),
                nnx.List(
                    [
                        InvertedResidual(config, first, second, stride=2, rngs=rngs),
                        InvertedResidual(config, second, second, rngs=rngs),
                    ]
                ),
                _attention_stage(config, 2, second, third, rngs),
                _attention_stage(config, 3, third, fourth, rngs),
                _attention_stage(config, 4, fourth, fifth, rngs),
            ]
        )

    def feature_maps(
        self, pixel_values: Features, rngs: nnx.Rngs | None = None
    ) -> tuple[Features, ...]:
        """Returns the outputs of the five stages, at strides 2, 4, 8, 16 and 32."""
        channels = self.config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[-1] != channels:
            raise ValueError(
                f"pixel_values must be [batch, height, width, {channels}] (channels last), "
                f"got {list(pixel_values.shape)}"
            )
        x, maps = self.stem(pixel_values), []
        apply = rematerialized if self.config.rematerialize else _apply
        for stage in self.stages:
            for block in stage:
                x = apply(block, x, rngs)
            maps.append(x)
        return tuple(maps)

    def __call__(
        self,
        pixel_values: Float[Array, "batch height width channels"],
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> BackboneOutput | tuple:
        """Computes feature maps of images.

        Args:
            pixel_values: images in [0, 1], channels last; the channel order is that of the
                weights (RGB for the original release).
            output_hidden_states: return all five feature maps; the config's choice by default.
            return_dict: False returns a plain tuple; the config's choice by default.
            rngs: source of randomness for dropout, needed in training mode if any is on.

        Raises:
            ValueError: if the images are not [batch, height, width, num_channels].
        """
        maps = self.feature_maps(pixel_values, rngs)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = BackboneOutput(
            last_hidden_state=maps[-1],
            pooler_output=pool(maps[-1]) if self.expand_output else None,
            hidden_states=maps if output_hidden_states else None,
        )
        use_dict = self.config.return_dict if return_dict is None else return_dict
        return output if use_dict else output.to_tuple()


def pool(x: Features) -> Float[Array, "batch channels"]:
    """Returns the mean over all positions, taken in float32 or better."""
    return jnp.mean(x, (1, 2), dtype=statistics_dtype(x)).astype(x.dtype)
