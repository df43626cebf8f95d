"""Initial weights: the spread of each layer, of the original release and of Hugging Face's.

Tolerance: the standard deviation of n draws is off by more than 5 of its standard errors, which
are at most value / sqrt(2 n), about once in a million; seeds are fixed.
"""

import math

import numpy as np
import pytest

from mobilevitv2_jax.models import functional


def check_spread(name, array, expected, bound=math.inf):
    deviation = np.sqrt(np.square(array, dtype=np.float64).mean())
    assert abs(deviation / expected - 1) <= 5 / math.sqrt(2 * array.size), name
    assert np.abs(array).max() <= bound, name


def named_arrays(model):
    return {name: np.asarray(x) for name, x in functional.arrays(model)[0].items()}


def test_kernels_and_biases_are_uniform_within_one_over_the_root_of_the_fan_in(make_model):
    """PyTorch's default, which the original release effectively has: std = bound / sqrt(3)."""
    parameters = named_arrays(make_model())
    bounds = {
        name.removesuffix("kernel"): 1 / math.sqrt(math.prod(x.shape[:-1]))
        for name, x in parameters.items()
        if name.endswith("kernel")
    }
    checked = 0
    for name, x in parameters.items():
        layer = name.removesuffix("kernel").removesuffix("bias")
        if layer in bounds and layer != "classifier.":
            checked += 1
            check_spread(name, x, bounds[layer] / math.sqrt(3), bounds[layer])
    # stem, five inverted residuals and 3 x (local, enter, project, 4 with a bias) with one more
    assert checked == 1 + 6 * 3 + 3 * (3 + 4 * 2)


def test_the_classifier_is_xavier_uniform_with_zero_bias(make_model):
    parameters = named_arrays(make_model(num_labels=50))
    kernel = parameters["classifier.kernel"]
    bound = math.sqrt(6 / sum(kernel.shape))
    check_spread("classifier", kernel, bound / math.sqrt(3), bound)
    assert not parameters["classifier.bias"].any()


@pytest.mark.parametrize("initialization", ["cvnets", "huggingface"])
def test_normalisations_start_as_the_identity(make_model, initialization):
    """Except that Hugging Face draws the scales of BatchNorm, with a mean of zero."""
    model = make_model(initialization=initialization)
    parameters, statistics = functional.arrays(model)
    for name, x in {**parameters, **statistics}.items():
        drawn = initialization == "huggingface" and "normalization" in name
        if name.endswith(("scale", "variance")) and not (drawn and name.endswith("scale")):
            assert (np.asarray(x) == 1).all(), name
        if name.endswith(("normalization.bias", "norm.bias", "mean")):
            assert not np.asarray(x).any(), name


def test_hugging_faces_way_draws_kernels_and_batch_norm_scales_alike(make_model):
    parameters = named_arrays(make_model(initialization="huggingface", initializer_range=0.05))
    for name, x in parameters.items():
        if name.endswith(("kernel", "normalization.scale")):
            check_spread(name, x, 0.05)
        elif name.endswith("bias"):
            assert not x.any(), name


def test_layers_differ_and_a_seed_gives_the_same_weights_again(make_model):
    first, again, other = (named_arrays(make_model(seed=seed)) for seed in (0, 0, 1))
    for name, x in first.items():
        np.testing.assert_array_equal(x, again[name])
        if name.endswith("kernel"):
            assert not np.array_equal(x, other[name]), name
    one = first["backbone.stages.2.1.layers.0.attention.out.kernel"]
    assert not np.array_equal(
        one, first["backbone.stages.2.1.layers.0.attention.qkv.kernel"][:, 1:33]
    )
