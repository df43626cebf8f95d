"""Named outputs of the models, with the fields and the tuple form of Hugging Face's.

They are pytrees, so that a jitted function can return them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from jaxtyping import Array, Float


class ModelOutput:
    """A frozen dataclass that also reads like a tuple, or a dict, of the fields that are set."""

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields that are not None, in order."""
        return tuple(value for _, value in self.items())

    def items(self) -> list[tuple[str, Any]]:
        """Returns the fields that are not None with their names, in order."""
        pairs = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return [(name, value) for name, value in pairs if value is not None]

    def keys(self) -> list[str]:
        """Returns the names of the fields that are not None."""
        return [name for name, _ in self.items()]

    def __getitem__(self, key: str | int | slice) -> Any:
        """Returns a field by name, or by its position among those that are not None."""
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names, as a dict does."""
        return iter(self.keys())

    def __len__(self) -> int:
        """Returns the number of fields that are not None."""
        return len(self.items())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BackboneOutput(ModelOutput):
    """What `MobileViTV2Model` returns.

    Attributes:
        last_hidden_state: the last feature map.
        pooler_output: its mean over all positions.
        hidden_states: the five feature maps, at strides 2, 4, 8, 16 and 32.
    """

    last_hidden_state: Float[Array, "batch height width channels"]
    pooler_output: Float[Array, "batch channels"] | None = None
    hidden_states: tuple[Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImageClassifierOutput(ModelOutput):
    """What `MobileViTV2ForImageClassification` returns.

    Attributes:
        loss: mean loss over the batch, when labels were given.
        logits: scores before the softmax.
        hidden_states: the five feature maps, at strides 2, 4, 8, 16 and 32.
    """

    loss: Float[Array, ""] | None = None
    logits: Float[Array, "batch num_labels"] | None = None
    hidden_states: tuple[Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SemanticSegmenterOutput(ModelOutput):
    """What `MobileViTV2ForSemanticSegmentation` returns.

    Attributes:
        loss: mean loss over the pixels that are not ignored, when labels were given.
        logits: scores at the size of the last feature map, not upsampled.
        hidden_states: the five feature maps.
        attentions: always None; Hugging Face's output has the field.
        auxiliary_logits: scores of the auxiliary head, in training mode if there is one.
    """

    loss: Float[Array, ""] | None = None
    logits: Float[Array, "batch height width num_labels"] | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: None = None
    auxiliary_logits: Float[Array, "batch height width num_labels"] | None = None
