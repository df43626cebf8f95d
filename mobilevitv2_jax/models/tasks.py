"""Models with a head, named and called as Hugging Face's."""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mobilevitv2_jax.models.backbone import MobileViTV2Model, pool
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.heads import HEADS, AuxiliaryHead
from mobilevitv2_jax.models.initializers import constant, uniform
from mobilevitv2_jax.models.layers import Pointwise
from mobilevitv2_jax.models.losses import classification_loss, segmentation_loss
from mobilevitv2_jax.models.outputs import ImageClassifierOutput, SemanticSegmenterOutput
from mobilevitv2_jax.models.pretrained import Pretrained

AUXILIARY_WEIGHT = 0.4
"""Weight of the auxiliary head's loss, as in the original release."""


def _classifier(config: MobileViTV2Config, inputs: int, rngs: nnx.Rngs) -> Pointwise:
    assert config.num_labels is not None  # resolved when the config is made
    layer = Pointwise(config, inputs, config.num_labels, rngs=rngs)
    if config.initialization == "cvnets":
        # The one layer that ml-cvnets' own initialisation reaches: LinearLayer resets itself
        # with xavier_uniform and a zero bias (`cvnets/layers/linear_layer.py`).
        limit = math.sqrt(6 / (inputs + config.num_labels))
        layer.kernel = nnx.Param(uniform(config, rngs.params(), (inputs, config.num_labels), limit))
        layer.bias = nnx.Param(constant(0, config.num_labels, jnp.dtype(config.param_dtype)))
    return layer


class MobileViTV2ForImageClassification(Pretrained):
    """MobileViTV2 with a linear classifier on the pooled features.

    Args:
        config: shape and behaviour; `num_labels=0` leaves the classifier out, and the logits
            are then the pooled features.
        rngs: source of the initial weights.
    """

    def __init__(self, config: MobileViTV2Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.backbone = MobileViTV2Model(config, rngs=rngs)
        self.dropout = nnx.Dropout(
            config.classifier_dropout_prob if config.classifier_dropout else 0.0
        )
        inputs = config.stage_channels[-1]
        self.classifier = _classifier(config, inputs, rngs) if config.num_labels else None

    def __call__(
        self,
        pixel_values: Float[Array, "batch height width channels"],
        labels: Array | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> ImageClassifierOutput | tuple:
        """Classifies images.

        Args:
            pixel_values: images in [0, 1], channels last.
            labels: targets, see `losses.classification_loss`; the loss is None without them.
            output_hidden_states: return the five feature maps; the config's choice by default.
            return_dict: False returns a plain tuple; the config's choice by default.
            rngs: source of randomness for dropout, needed in training mode if any is on.

        Raises:
            ValueError: if images or labels have the wrong shape.
        """
        maps = self.backbone.feature_maps(pixel_values, rngs)
        logits = self.dropout(pool(maps[-1]), rngs=rngs)
        if self.classifier is not None:
            logits = self.classifier(logits)
        loss = None
        if labels is not None:
            loss = classification_loss(logits, jnp.asarray(labels), self.config.problem_type)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=maps if output_hidden_states else None
        )
        use_dict = self.config.return_dict if return_dict is None else return_dict
        return output if use_dict else output.to_tuple()


class MobileViTV2ForSemanticSegmentation(Pretrained):
    """MobileViTV2 with the head that `config.segmentation_head` names: DeepLabV3 or PSPNet.

    Args:
        config: shape and behaviour; `output_stride` 16 or 8 gives finer maps.
        rngs: source of the initial weights.

    Raises:
        ValueError: if there are fewer than two classes.
    """

    def __init__(self, config: MobileViTV2Config, *, rngs: nnx.Rngs) -> None:
        if not config.num_labels or config.num_labels < 2:
            raise ValueError(
                f"num_labels must be at least 2 for segmentation, got {config.num_labels}: "
                "background and one class are num_labels=2"
            )
        self.config = config
        self.backbone = MobileViTV2Model(config, expand_output=False, rngs=rngs)
        self.segmentation_head = HEADS[config.segmentation_head](config, rngs=rngs)
        self.auxiliary_head = AuxiliaryHead(config, rngs=rngs) if config.auxiliary_head else None
        self.deterministic = False

    def __call__(
        self,
        pixel_values: Float[Array, "batch height width channels"],
        labels: Array | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> SemanticSegmenterOutput | tuple:
        """Scores every position of the feature map.

        Args:
            pixel_values: images in [0, 1], channels last.
            labels: classes [batch, height, width] of any size; those equal to
                `semantic_loss_ignore_index` are passed over.
            output_hidden_states: return the five feature maps; the config's choice by default.
            return_dict: False returns a plain tuple; the config's choice by default.
            rngs: source of randomness for dropout, needed in training mode if any is on.

        Raises:
            ValueError: if images or labels have the wrong shape.
        """
        maps = self.backbone.feature_maps(pixel_values, rngs)
        logits = self.segmentation_head(maps[-1], rngs)
        auxiliary = None
        if self.auxiliary_head is not None and not self.deterministic:
            auxiliary = self.auxiliary_head(maps[-2], rngs)
        loss = None
        if labels is not None:
            loss = self.loss(logits, labels)
            if auxiliary is not None:
                loss = loss + AUXILIARY_WEIGHT * self.loss(auxiliary, labels)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=maps if output_hidden_states else None,
            auxiliary_logits=auxiliary,
        )
        use_dict = self.config.return_dict if return_dict is None else return_dict
        return output if use_dict else output.to_tuple()

    def loss(self, logits: Array, labels: Array) -> Float[Array, ""]:
        """Returns the mean cross entropy of the pixels that count, at the size of the labels."""
        return segmentation_loss(
            logits,
            jnp.asarray(labels),
            ignored=self.config.semantic_loss_ignore_index,
            align_corners=self.config.align_corners,
        )
