"""One evaluation step: a pure function of parameters, statistics and batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from mobilevitv2_jax.evaluation.metrics import Sums, classification_sums
from mobilevitv2_jax.models.functional import Arrays, merge

EvaluationStep = Callable[[Arrays, Arrays, dict[str, Array]], tuple[Sums, Array]]


def make_evaluation_step(graph: nnx.GraphDef) -> EvaluationStep:
    """Returns the evaluation step, to be jitted.

    The step takes (parameters, statistics, batch) with "image" in uint8, "label" and "mask",
    and returns the sums of `classification_sums` and the probabilities [batch, classes].
    """

    def evaluation_step(
        parameters: Arrays, statistics: Arrays, batch: dict[str, Array]
    ) -> tuple[Sums, Array]:
        model = merge(graph, parameters, statistics)
        logits = model(batch["image"].astype(jnp.float32) / 255).logits
        sums = classification_sums(logits, batch["label"], batch["mask"])
        return sums, jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

    return evaluation_step
