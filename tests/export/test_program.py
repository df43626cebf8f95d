"""What is baked into an artefact is what its image processor does."""

import dataclasses

import numpy as np
import pytest
from processing_cases import picture

import mobilevitv2_jax as mv
from mobilevitv2_jax.errors import ConfigError
from mobilevitv2_jax.export import program
from mobilevitv2_jax.export.examples import _Fit, scaled
from mobilevitv2_jax.export.interface import Options
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.models.resize import resize_bilinear, resize_in_run

PUBLISHED = mv.MobileViTImageProcessor(size=288, crop_size=256, resample=2)
RULES = {
    "published": (PUBLISHED, "classification"),
    "bicubic": (dataclasses.replace(PUBLISHED, resample=3), "classification"),
    "squashed": (PUBLISHED, "segmentation"),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("size", [pytest.param((480, 640), marks=pytest.mark.slow), (97, 301)])
def test_pictures_are_resized_and_cropped_as_pillow_does(name, size):
    processor, task = RULES[name]
    rules = program.fixed_rules(processor, (64, 48), task)
    image = picture(size)
    expected = _Fit.of(rules, Options(to="stablehlo"))({"image": image, "label": 0})["image"]
    found = np.asarray(program._resize_crop(rules, size)(image[None].astype(np.float32))[0])
    assert found.shape == (64, 48, 3)
    # Pillow rounds to bytes after each axis, of which the first error is spread by the second.
    assert np.abs(found - expected).max() <= 1.5


@pytest.mark.parametrize("do_normalize", [False, True])
def test_bytes_are_scaled_as_the_image_processor_does(do_normalize):
    rules = mv.MobileViTImageProcessor(
        size={"height": 32, "width": 32},
        do_center_crop=False,
        do_normalize=do_normalize,
        image_mean=(0.1, 0.2, 0.3),
        image_std=(0.5, 0.6, 0.7),
    )
    before = program._before(rules, Options(to="stablehlo", preprocess=True))
    image = picture((32, 32))[None]
    # The order of the channels is left to the kernel of the first convolution.
    expected = scaled(dataclasses.replace(rules, do_flip_channel_order=False), image)
    np.testing.assert_allclose(np.asarray(before(image)), expected, rtol=0, atol=1e-6)


def test_a_size_of_the_user_keeps_the_share_that_the_crop_leaves():
    rules = program.fixed_rules(PUBLISHED, (128, 192), "classification")
    assert rules.size == {"shortest_edge": 216}
    assert program.seen_size(rules) == (128, 192)
    assert program.seen_size(program.fixed_rules(PUBLISHED, None, "segmentation")) == (256, 256)


@pytest.mark.parametrize("align_corners", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_maps_are_resized_in_the_run_as_by_constant_matrices(align_corners):
    x = np.random.RandomState(0).normal(0, 1, (1, 4, 5, 3)).astype(np.float32)
    expected = resize_bilinear(x, (32, 41), align_corners=align_corners)
    found = resize_in_run(x, (32, 41), align_corners=align_corners)
    # Positions in float32, and not in float64.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(resize_in_run(x, (4, 5), align_corners=align_corners), x)


def make(options, **fields):
    """Returns the program of a small model of random weights."""
    config = mv.MobileViTV2Config(width_multiplier=0.25, n_attn_blocks=(1, 1, 1), **fields)
    model = mv.MobileViTV2ForImageClassification(config, rngs=Blank())
    model.eval()
    rules = program.fixed_rules(PUBLISHED, options.size, "classification")
    return program.make_program(model, rules, options, resize_bilinear)


@pytest.mark.parametrize("fields", [{"num_labels": 1}, {"problem_type": "regression"}])
@pytest.mark.parametrize("output", ["probabilities", "top_k"])
def test_values_are_no_probabilities(fields, output):
    with pytest.raises(ConfigError, match=f"--output={output} is for classes, and this model"):
        make(Options(to="stablehlo", output=output), **fields)


def test_any_size_wants_pictures_of_such_a_size():
    with pytest.raises(ConfigError, match="in multiples of 32, and pictures come in at 250x250"):
        make(Options(to="stablehlo", any_size=True, size=(250, 250)))


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ConfigError, match="have no head"):
        program.task_of(object())
