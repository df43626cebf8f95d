"""Patches, and the separable attention over them, against NumPy."""

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend import core

from mobilevitv2_jax.models.attention import (
    FeedForward,
    SeparableSelfAttention,
    fold,
    unfold,
)
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.losses import classification_loss
from mobilevitv2_jax.models.platform import traced_for

CONFIG = MobileViTV2Config()


def test_patches_and_their_pixels_are_in_reading_order():
    """The order of torch.nn.functional.unfold: pixel 2 * row + column, patches row by row."""
    x = np.arange(4 * 6).reshape(1, 4, 6, 1)
    tokens = np.asarray(unfold(x, 2))
    assert tokens.shape == (1, 6, 4, 1)
    np.testing.assert_array_equal(tokens[0, 0, :, 0], [0, 1, 6, 7])
    np.testing.assert_array_equal(tokens[0, 1, :, 0], [2, 3, 8, 9])
    np.testing.assert_array_equal(tokens[0, 3, :, 0], [12, 13, 18, 19])


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.integers(1, 4),
    channels=st.integers(1, 3),
)
def test_fold_is_the_inverse_of_unfold(batch, rows, columns, patch, channels):
    height, width = rows * patch, columns * patch
    x = np.arange(batch * height * width * channels).reshape(batch, height, width, channels)
    np.testing.assert_array_equal(fold(unfold(x, patch), patch, height, width), x)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_attention_is_the_papers_formula(platform):
    """out(relu(value) * sum over patches of softmax(query) * key), for each pixel on its own."""
    layer = SeparableSelfAttention(CONFIG, 8, rngs=nnx.Rngs(0))
    x = np.random.RandomState(0).normal(size=(2, 6, 4, 8)).astype(np.float32)
    qkv = x @ np.asarray(layer.qkv.kernel[...]) + np.asarray(layer.qkv.bias[...])
    query, key, value = qkv[..., :1], qkv[..., 1:9], qkv[..., 9:]
    scores = np.exp(query) / np.exp(query).sum(1, keepdims=True)
    context = (scores * key).sum(1, keepdims=True)
    expected = np.maximum(value, 0) * context @ np.asarray(layer.out.kernel[...])
    with jax.default_matmul_precision("highest"), traced_for(platform):
        y = layer(x)
    np.testing.assert_allclose(y, expected + np.asarray(layer.out.bias[...]), atol=1e-5)


def test_pixels_of_a_patch_do_not_see_each_other():
    layer = SeparableSelfAttention(CONFIG, 8, rngs=nnx.Rngs(0))
    x = np.random.RandomState(0).normal(size=(1, 6, 4, 8)).astype(np.float32)
    changed = x.copy()
    changed[:, :, 0] += 1
    before, after = np.asarray(layer(x)), np.asarray(layer(changed))
    np.testing.assert_array_equal(before[:, :, 1:], after[:, :, 1:])
    assert np.abs(before[:, :, 0] - after[:, :, 0]).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("attn_dropout", SeparableSelfAttention),
        ("ffn_dropout", FeedForward),
    ],
)
def test_dropout_acts_in_training_only_and_keeps_the_mean(field, kind):
    """Tolerance: 6 standard errors of the mean over 2048 draws of what is linear in the drop."""
    layer = kind(CONFIG.replace(**{field: 0.3}), 16, rngs=nnx.Rngs(0))
    x = np.random.RandomState(0).normal(size=(1, 4, 4, 16)).astype(np.float32)
    layer.eval()
    expected = layer(x)
    layer.train()
    draws = np.asarray(layer(np.repeat(x, 2048, 0), nnx.Rngs(dropout=0)), np.float64)
    assert (draws.std(0) > 0).all()
    assert (np.abs(draws.mean(0) - expected[0]) <= 6 * draws.std(0) / np.sqrt(2048) + 1e-6).all()


def largest_rank(jaxpr):
    ranks = [len(v.aval.shape) for e in jaxpr.eqns for v in (*e.invars, *e.outvars)]
    for equation in jaxpr.eqns:
        for parameter in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
        ):
            if isinstance(parameter, core.Jaxpr | core.ClosedJaxpr):
                ranks.append(largest_rank(getattr(parameter, "jaxpr", parameter)))
    return max(ranks, default=0)


@pytest.mark.parametrize("form", ["shifts", "convolution", "auto"])
@pytest.mark.parametrize("size", [pytest.param((64, 64), marks=pytest.mark.slow), (48, 80)])
def test_no_array_of_the_forward_pass_has_more_than_four_axes(make_model, form, size):
    """Converters for phones take no more; (48, 80) also has the resizing of odd sizes."""
    model = make_model(depthwise=form)

    def forward(x, labels):
        logits = model(x).logits
        return logits, classification_loss(logits, labels, "single_label_classification")

    jaxpr = jax.make_jaxpr(forward)(np.zeros((2, *size, 3), np.float32), np.zeros(2, np.int32))
    assert largest_rank(jaxpr.jaxpr) == 4
