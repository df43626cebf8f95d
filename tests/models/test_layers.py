"""Convolutions and normalisations against NumPy and against each other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mobilevitv2_jax.models.attention import MobileViTV2Block
from mobilevitv2_jax.models.backbone import MobileViTV2Model
from mobilevitv2_jax.models.config import MobileViTV2Config
from mobilevitv2_jax.models.layers import (
    BatchNorm,
    ConvNormAct,
    GroupNorm,
    InvertedResidual,
    StochasticDepth,
    activation,
    depthwise,
)

CONFIG = MobileViTV2Config()
QUICK = ((1, 2, 1), (3, 1, 1), (3, 2, 2), (5, 1, 2))
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product((1, 3, 5), (1, 2), (1, 2))
]


def normal(*shape, seed=0):
    return np.random.RandomState(seed).normal(size=shape).astype(np.float32)


def value_and_gradients(x, kernel, stride, dilation, form):
    def weighted_sum(x, kernel):
        y = depthwise(x, kernel, stride, dilation, form)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

    @jax.jit
    def run(x, kernel):
        (_, y), gradients = jax.value_and_grad(weighted_sum, argnums=(0, 1), has_aux=True)(
            x, kernel
        )
        return y, *gradients

    return run(x, kernel)


@pytest.mark.parametrize(("size", "stride", "dilation"), CASES)
def test_the_forms_of_a_depthwise_convolution_agree_in_values_and_gradients(size, stride, dilation):
    """Tolerance: 1e-5, float32 sums of at most 25 (values) or 99 (gradients) terms."""
    x, kernel = normal(1, 9, 11, 4), normal(size, size, 1, 4, seed=1)
    shifts = value_and_gradients(x, kernel, stride, dilation, "shifts")
    convolution = value_and_gradients(x, kernel, stride, dilation, "convolution")
    for ours, reference in zip(shifts, convolution, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5 * np.abs(reference).max())


def test_a_depthwise_convolution_pads_both_sides_alike():
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 0, 0, 0] = 1
    kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    for form in ("shifts", "convolution"):
        y = depthwise(x, kernel, 2, 1, form)
        # The corner pixel meets the centre of the kernel, not its first row and column.
        np.testing.assert_array_equal(y[0, :, :, 0], [[4, 0], [0, 0]])


def test_the_automatic_form_on_a_cpu_is_the_shifts():
    x, kernel = normal(1, 8, 8, 4), normal(3, 3, 1, 4, seed=1)
    automatic = jax.jit(lambda x, kernel: depthwise(x, kernel, 1, 1, "auto"))
    shifts = jax.jit(lambda x, kernel: depthwise(x, kernel, 1, 1, "shifts"))
    np.testing.assert_array_equal(automatic(x, kernel), shifts(x, kernel))
    assert "convolution" not in automatic.lower(x, kernel).compile().as_text()


def test_the_automatic_form_on_an_accelerator_is_the_convolution():
    automatic = jax.jit(lambda x, kernel: depthwise(x, kernel, 1, 1, "auto"))
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, 8, 8, 4), (3, 3, 1, 4))]
    for platform, found in (("tpu", True), ("cuda", True), ("cpu", False)):
        text = automatic.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
        assert ("convolution" in text) == found, platform


def test_batch_norm_trains_as_pytorchs():
    """Normalises by the biased variance; remembers the unbiased one with momentum 0.1."""
    layer, x = BatchNorm(CONFIG, 3, rngs=nnx.Rngs(0)), 2 + 3 * normal(4, 5, 6, 3)
    y = layer(x)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    np.testing.assert_allclose(layer.mean[...], 0.1 * mean, rtol=1e-5)
    unbiased = x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(layer.variance[...], 0.9 + 0.1 * unbiased, rtol=1e-5)


def test_batch_norm_evaluates_with_the_running_statistics_and_leaves_them():
    layer, x = BatchNorm(CONFIG, 3, rngs=nnx.Rngs(0)), normal(2, 3, 3, 3)
    layer.mean.set_value(jnp.array([1.0, 2.0, 3.0]))
    layer.variance.set_value(jnp.array([0.5, 1.0, 2.0]))
    layer.eval()
    y = layer(x)
    np.testing.assert_allclose(
        y, (x - [1, 2, 3]) / np.sqrt(np.array([0.5, 1, 2]) + 1e-5), atol=1e-5
    )
    np.testing.assert_array_equal(layer.mean[...], [1, 2, 3])


def test_batch_norm_over_groups_is_batch_norm_of_each_group():
    config = CONFIG.replace(batch_norm_group_size=2)
    grouped, x = BatchNorm(config, 3, rngs=nnx.Rngs(0)), normal(6, 4, 4, 3)
    halves = [BatchNorm(CONFIG, 3, rngs=nnx.Rngs(0)) for _ in range(3)]
    y = grouped(x)
    separate = [layer(x[2 * i : 2 * i + 2]) for i, layer in enumerate(halves)]
    np.testing.assert_allclose(y, np.concatenate(separate), atol=1e-6)
    for name in ("mean", "variance"):
        each = [getattr(layer, name)[...] for layer in halves]
        np.testing.assert_allclose(getattr(grouped, name)[...], np.mean(each, 0), rtol=1e-5)


def test_batch_norm_refuses_a_batch_that_its_groups_do_not_divide():
    layer = BatchNorm(CONFIG.replace(batch_norm_group_size=4), 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="must divide the batch of 6 images, got 4"):
        layer(normal(6, 2, 2, 3))


def test_group_norm_is_over_the_whole_sample():
    layer, x = GroupNorm(CONFIG, 8), 5 + normal(2, 6, 4, 8)
    layer.scale.set_value(jnp.arange(8.0))
    layer.bias.set_value(jnp.ones(8))
    mean, variance = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-5) * np.arange(8) + 1
    np.testing.assert_allclose(layer(x), expected, atol=1e-4)


def test_statistics_of_half_precision_features_are_taken_in_float32():
    """1000 of a bfloat16 has a spacing of 4: sums in bfloat16 could not see the variance of 1."""
    layer = BatchNorm(CONFIG, 1, rngs=nnx.Rngs(0))
    x = jnp.asarray(1000 + 4 * np.arange(64).reshape(1, 8, 8, 1) % 16, jnp.bfloat16)
    y = layer(x)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(layer.mean[...], 0.1 * exact.mean(), rtol=1e-6)


def test_the_residual_is_there_only_where_shapes_allow_it():
    def residual(inputs, outputs, stride):
        return InvertedResidual(CONFIG, inputs, outputs, stride=stride, rngs=nnx.Rngs(0)).residual

    assert residual(16, 16, 1)
    assert not residual(16, 16, 2)
    assert not residual(16, 24, 1)


def test_an_activation_may_be_a_function():
    assert activation(CONFIG.replace(hidden_act=jnp.tanh)) is jnp.tanh
    layer = ConvNormAct(
        CONFIG, 3, 4, act=activation(CONFIG.replace(hidden_act=jnp.abs)), rngs=nnx.Rngs(0)
    )
    assert (np.asarray(layer(normal(1, 4, 4, 3))) >= 0).all()


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    layer = StochasticDepth(0.25)
    y = np.asarray(layer(jnp.ones((1000, 2, 3, 4)), rngs=nnx.Rngs(dropout=0)))
    kept = y[:, 0, 0, 0]
    assert (y == kept[:, None, None, None]).all()
    assert set(kept.tolist()) == {0.0, np.float32(4 / 3)}
    # The deviation of 1,000 draws is 0.014.
    assert abs((kept > 0).mean() - 0.75) < 4 * 0.014
    layer.deterministic = True
    assert (np.asarray(layer(jnp.ones((9, 1, 1, 1)))) == 1).all()


@pytest.mark.slow
def test_stochastic_depth_grows_from_0_in_equal_steps_and_spares_the_skip():
    layers = {"n_attn_blocks": (1, 2, 1), "width_multiplier": 0.25}
    config = CONFIG.replace(stochastic_depth=0.18, **layers)
    backbone = nnx.eval_shape(lambda: MobileViTV2Model(config, rngs=nnx.Rngs(0)))
    rates = [
        part.drop.rate
        for stage in backbone.stages
        for block in stage
        for part in (block.layers if isinstance(block, MobileViTV2Block) else [block])
    ]
    np.testing.assert_allclose(rates, 0.02 * np.arange(10))
    block = InvertedResidual(CONFIG, 4, 4, drop_rate=1.0, rngs=nnx.Rngs(0))
    x = normal(2, 4, 4, 4)
    np.testing.assert_array_equal(block(x, nnx.Rngs(dropout=0)), x)
