"""The table of names: complete, exact in both directions, and strict."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference_weights import reference_weights, shapes_of

import mobilevitv2_jax as mv
from mobilevitv2_jax.models import functional
from mobilevitv2_jax.weights.names import SOURCES

SMALL = {"width_multiplier": 0.25, "num_labels": 5}
STEM = "mobilevitv2.conv_stem.convolution.weight"
QKV = "mobilevitv2.encoder.layer.2.transformer.layer.0.attention.qkv_proj.convolution"


def small(kind=mv.MobileViTV2ForImageClassification, width=SMALL["width_multiplier"]):
    return nnx.clone(made(kind, width))


@functools.cache
def made(kind, width):
    return kind(mv.MobileViTV2Config(**{**SMALL, "width_multiplier": width}), rngs=nnx.Rngs(0))


def arrays_of(model):
    parameters, statistics = functional.arrays(model)
    return {name: np.asarray(x) for name, x in {**parameters, **statistics}.items()}


@pytest.mark.parametrize(
    "width",
    [
        0.33,
        *(pytest.param(x, marks=pytest.mark.slow) for x in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)),
    ],
)
def test_the_classifier_has_269_keys_and_the_backbone_267_at_every_width(width):
    classifier = small(width=width)
    keys = mv.weights.state_dict(classifier).keys()
    assert len(keys) == 269
    bare = mv.weights.state_dict(classifier.backbone).keys()
    assert len(bare) == 267
    assert {f"mobilevitv2.{key}" for key in bare} | {"classifier.weight", "classifier.bias"} == keys


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "kind",
    [
        mv.MobileViTV2ForImageClassification,
        pytest.param(mv.MobileViTV2Model, marks=pytest.mark.slow),
    ],
)
def test_the_way_there_and_back_is_exact_to_the_bit(source, kind):
    model = small(kind)
    arrays = mv.weights.state_dict(model, source)
    random = {key: x for key, x in reference_weights(shapes_of(arrays)).items()}
    mv.weights.load_state_dict(model, random, source)
    again = mv.weights.state_dict(model, source)
    assert again.keys() == random.keys() == arrays.keys()
    for key, x in random.items():
        assert again[key].flags.c_contiguous and again[key].flags.writeable
        assert again[key].dtype == x.dtype
        np.testing.assert_array_equal(again[key], x)


def test_layouts_are_those_of_pytorch():
    model = small()
    theirs, ours = mv.weights.state_dict(model), arrays_of(model)
    kernel = ours["backbone.stem.convolution.kernel"]
    assert kernel.shape == (3, 3, 3, 16)
    np.testing.assert_array_equal(theirs[STEM][7, 1, 2, 0], kernel[2, 0, 1, 7])
    depthwise = theirs["mobilevitv2.encoder.layer.2.conv_kxk.convolution.weight"]
    assert depthwise.shape == (64, 1, 3, 3)
    pointwise = ours["backbone.stages.2.1.layers.0.attention.qkv.kernel"]
    np.testing.assert_array_equal(theirs[f"{QKV}.weight"][:, :, 0, 0], pointwise.T)
    np.testing.assert_array_equal(theirs["classifier.weight"], ours["classifier.kernel"].T)
    counter = theirs["mobilevitv2.conv_stem.normalization.num_batches_tracked"]
    assert counter.dtype == np.int64 and counter.shape == () and counter == 0


def test_names_in_the_original_release():
    """Its module definitions: layer_3 is our stage 2, and the last norm follows the layers."""
    keys = mv.weights.state_dict(small(), "cvnets").keys()
    for key in (
        "conv_1.block.conv.weight",
        "layer_1.0.block.exp_1x1.block.norm.running_var",
        "layer_3.1.local_rep.1.block.conv.weight",
        "layer_4.1.global_rep.3.pre_norm_attn.1.qkv_proj.block.conv.bias",
        "layer_3.1.global_rep.2.weight",
        "layer_4.1.global_rep.4.weight",
        "layer_5.1.global_rep.3.weight",
        "layer_5.1.conv_proj.block.conv.weight",
        "classifier.1.weight",
    ):
        assert key in keys


def test_the_counters_may_be_absent():
    model = small()
    arrays = reference_weights(shapes_of(mv.weights.state_dict(model)))
    kept = {key: x for key, x in arrays.items() if not key.endswith("num_batches_tracked")}
    mv.weights.load_state_dict(model, kept)
    again = mv.weights.state_dict(model)
    assert kept.keys() < again.keys()
    for key, x in kept.items():
        np.testing.assert_array_equal(again[key], x)


def test_every_missing_unexpected_and_mismatched_key_is_listed_and_nothing_is_loaded():
    model = small()
    before = arrays_of(model)
    arrays = reference_weights(shapes_of(mv.weights.state_dict(model)))
    del arrays[STEM], arrays["classifier.bias"]
    arrays |= {"head.weight": np.zeros(3), "classifier.scale": np.zeros(3)}
    arrays["classifier.weight"] = np.zeros((7, 128), np.float32)
    with pytest.raises(ValueError) as caught:
        mv.weights.load_state_dict(model, arrays)
    message = str(caught.value)
    assert f"2 missing:\n  classifier.bias\n  {STEM}" in message
    assert "2 unexpected:\n  classifier.scale\n  head.weight" in message
    assert (
        "1 mismatched:\n  classifier.weight: expected float32 [5, 128], got float32 [7, 128]"
        in message
    )
    for name, x in arrays_of(model).items():
        np.testing.assert_array_equal(x, before[name])


def test_a_long_list_of_keys_is_cut_short():
    with pytest.raises(ValueError, match=r"239 more"):
        mv.weights.load_state_dict(small(), mv.weights.state_dict(small()), "timm")


@pytest.mark.parametrize("dtype", ["float16", jnp.bfloat16])
def test_narrower_numbers_are_widened_exactly(dtype):
    model = small()
    arrays = {
        key: x if x.dtype == np.int64 else x.astype(dtype)
        for key, x in reference_weights(shapes_of(mv.weights.state_dict(model))).items()
    }
    mv.weights.load_state_dict(model, arrays)
    again = mv.weights.state_dict(model)
    for key, x in arrays.items():
        np.testing.assert_array_equal(again[key], x.astype(again[key].dtype))


@pytest.mark.parametrize("dtype", ["float64", "int32", "bool", "complex64"])
def test_numbers_that_would_lose_something_are_refused(dtype):
    model = small()
    arrays = mv.weights.state_dict(model)
    arrays["classifier.bias"] = np.zeros(5, dtype)
    with pytest.raises(ValueError, match=rf"expected float32 \[5\], got {dtype} \[5\]"):
        mv.weights.load_state_dict(model, arrays)


@pytest.mark.parametrize("function", [mv.weights.state_dict, mv.weights.load_state_dict])
def test_an_unknown_source_is_refused_with_those_allowed(function):
    arguments = (small(),) if function is mv.weights.state_dict else (small(), {})
    with pytest.raises(ValueError, match="one of hf, timm, cvnets, got 'tim'.*did you mean 'timm'"):
        function(*arguments, source="tim")
