"""The written gradient of the normalisations against the one that differentiation gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilevitv2_jax.models.normalization import normalize
from mobilevitv2_jax.models.platform import traced_for

CASES = {
    "batch": ((1, 6, 4, 5, 8), jax.nn.silu, True),
    "groups of a batch": ((3, 2, 4, 5, 8), None, True),
    "samples": ((4, 1, 6, 4, 8), None, False),
    "tokens": ((4, 6, 4, 8), None, False),  # as GroupNorm has them
}


def outputs_and_gradients(case, gradients, dtype=np.float32):
    """Returns result, mean, variance, and gradients of the input, the scale and the bias."""
    shape, act, per_channel = CASES[case]
    random = np.random.RandomState(0)
    x = (3 + 2 * random.normal(size=shape)).astype(dtype)
    scale, bias, weights = (random.normal(size=n).astype(np.float32) for n in (8, 8, shape))

    @jax.jit
    def run(x, scale, bias):
        def weighted_sum(x, scale, bias):
            y, mean, variance = normalize(
                x, scale, bias, per_channel=per_channel, epsilon=1e-5, act=act, gradients=gradients
            )
            return (y.astype(np.float32) * weights).sum(), (y, mean, variance)

        (_, outputs), found = jax.value_and_grad(weighted_sum, (0, 1, 2), True)(x, scale, bias)
        return *outputs, *found

    return run(x, scale, bias)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize("case", CASES)
def test_the_written_gradient_is_the_derived_one(case, platform):
    """Tolerance: 1e-5, float32 sums of at most 240 terms."""
    with traced_for(platform):
        written, derived = (outputs_and_gradients(case, name) for name in ("written", "derived"))
    for ours, reference in zip(written, derived, strict=True):
        assert ours.shape == reference.shape and ours.dtype == reference.dtype
        np.testing.assert_allclose(ours, reference, atol=1e-5 * np.abs(reference).max())


def test_what_is_kept_for_the_gradient_is_the_input_and_its_moments():
    x = jnp.ones((1, 4, 8, 8, 16), jnp.bfloat16)
    scale = jnp.ones(16)

    def keep(gradients):
        def result(x):
            return normalize(
                x,
                scale,
                scale,
                per_channel=True,
                epsilon=1e-5,
                act=jax.nn.silu,
                gradients=gradients,
            )[0]

        kept = jax.eval_shape(lambda x: jax.vjp(result, x)[1], x)
        return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(kept))

    assert keep("written") <= x.size * 2 + 5 * 16 * 4
    assert keep("derived") > 3 * keep("written")


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_mean_of_a_thousand_deviations_costs_no_digits(per_channel):
    """Tolerance: 1e-5, float32 sums of 4096 terms."""
    x = (1000 + np.random.RandomState(0).normal(size=(1, 64, 8, 8, 1))).astype(np.float32)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)

    def moments(x):
        return normalize(x, one, zero, per_channel=per_channel, epsilon=1e-5)[1:]

    mean, variance = jax.vjp(moments, x)[0]
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean.item(), exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(variance.item(), exact.var(), rtol=1e-5)
