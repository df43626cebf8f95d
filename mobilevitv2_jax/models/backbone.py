"""The backbone: a stem and five stages, after table 6 of arXiv 2206.02680."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
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
    config: MobileViTV2Config,
    index: int,
    inputs: int,
    outputs: int,
    drop_rates: Iterator[float],
    rngs: nnx.Rngs,
) -> nnx.List:
    """Returns stage `index` (2, 3 or 4, from 0): a downsampling block and an attention block."""
    layers = config.n_attn_blocks[index - 2]
    dilation = stage_dilations(config.output_stride)[index - 2]
    return nnx.List(
        [
            InvertedResidual(
                config,
                inputs,
                outputs,
                stride=2 if dilation == 1 else 1,
                dilation=max(dilation // 2, 1),
                drop_rate=next(drop_rates),
                rngs=rngs,
            ),
            MobileViTV2Block(
                config,
                outputs,
                config.attention_channels[index - 2],
                layers=layers,
                dilation=dilation if config.dilation_rule == "cvnets" else 1,
                drop_rates=list(itertools.islice(drop_rates, layers)),
                rngs=rngs,
            ),
        ]
    )


def _drop_rates(config: MobileViTV2Config) -> Iterator[float]:
    """Returns the stochastic depth of each block and attention layer, from the first to the last.

    Blocks without a residual branch count, and have no use for theirs.
    """
    last = 5 + sum(config.n_attn_blocks)  # six inverted residuals, counted from 0
    return (config.stochastic_depth * number / last for number in range(last + 1))


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
        rates = _drop_rates(config)
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
                nnx.List([InvertedResidual(config, stem, first, drop_rate=next(rates), rngs=rngs)]),
                nnx.List(
                    [
                        InvertedResidual(
                            config, first, second, stride=2, drop_rate=next(rates), rngs=rngs
                        ),
                        InvertedResidual(config, second, second, drop_rate=next(rates), rngs=rngs),
                    ]
                ),
                _attention_stage(config, 2, second, third, rates, rngs),
                _attention_stage(config, 3, third, fourth, rates, rngs),
                _attention_stage(config, 4, fourth, fifth, rates, rngs),
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
