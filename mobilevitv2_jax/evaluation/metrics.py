"""Metrics as sums over examples, so that batches, padding and devices do not change them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mobilevitv2_jax.models.losses import cross_entropy

Sums = dict[str, Array]


def classification_sums(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    mask: Float[Array, " batch"],
) -> Sums:
    """Returns sums over the examples whose mask is 1: loss, correct in top 1 and 5, count.

    An example is correct in the top k if fewer than k classes score at least as high as the
    true one, itself left out: ties count against it, so that equal logits earn nothing.
    """
    logits = logits.astype(jnp.float32)
    true = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    rank = (logits >= true).sum(-1) - 1
    # A NaN compares false with everything, which would count as the first rank.
    rank = jnp.where(jnp.isnan(logits).any(-1), logits.shape[-1], rank)
    return {
        "loss": jnp.where(mask > 0, cross_entropy(logits, labels), 0).sum(),
        "top1": (mask * (rank < 1)).sum(),
        "top5": (mask * (rank < 5)).sum(),
        "count": mask.sum(),
    }


def means(sums: Sums) -> dict[str, float]:
    """Returns loss, top1 and top5 per example, as Python numbers.

    Raises:
        ValueError: if no example was counted.
    """
    values = {name: float(value) for name, value in jax.device_get(sums).items()}
    count = values.pop("count")
    if not count:
        raise ValueError("no example was evaluated: the set is empty, or none could be decoded")
    return {name: value / count for name, value in values.items()}
