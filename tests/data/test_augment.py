"""The transforms of training and evaluation."""

import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mobilevitv2_jax.config import default_config
from mobilevitv2_jax.data.augment import (
    Evaluate,
    HorizontalFlip,
    RandomResizedCrop,
    Train,
    evaluation_transform,
    train_transform,
)
from mobilevitv2_jax.data.image import center_crop, resize, resize_short_side

CROP = RandomResizedCrop(16, (0.08, 1.0), (3 / 4, 4 / 3), "bilinear")


def noise(height, width, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


@settings(derandomize=True, deadline=None)
@given(height=st.integers(1, 600), width=st.integers(1, 600), seed=st.integers(0, 2**32))
@example(height=1, width=600, seed=0)
@example(height=600, width=1, seed=0)
def test_a_random_box_lies_within_the_image(height, width, seed):
    top, left, box_height, box_width = CROP.box(height, width, rng(seed))
    assert box_height >= 1 and box_width >= 1
    assert top >= 0 and top + box_height <= height
    assert left >= 0 and left + box_width <= width


@settings(derandomize=True, deadline=None)
@given(height=st.integers(200, 600), width=st.integers(200, 600), seed=st.integers(0, 2**32))
def test_a_random_box_keeps_to_scale_and_ratio(height, width, seed):
    _, _, box_height, box_width = CROP.box(height, width, rng(seed))
    # Either side is rounded by at most half a pixel, and none is shorter than 48 here
    # (the square root of 8 % of 200x200 at ratio 3/4).
    slack = 1 + 1 / 48
    assert 0.08 / slack**2 <= box_height * box_width / (height * width) <= 1
    assert 3 / 4 / slack**2 <= box_width / box_height <= 4 / 3 * slack**2


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10))]
)
def test_where_no_box_fits_the_largest_central_one_is_taken(height, width, box):
    # At least 90 % of so long an image is wider (or higher) than any allowed ratio.
    crop = RandomResizedCrop(16, (0.9, 1.0), (3 / 4, 4 / 3), "bilinear")
    assert crop.box(height, width, rng()) == box


def test_boxes_are_spread_over_the_allowed_areas_and_ratios():
    boxes = [CROP.box(400, 400, rng(seed))[2:] for seed in range(400)]
    areas = [height * width / 400**2 for height, width in boxes]
    ratios = [math.log(width / height) for height, width in boxes]
    assert min(areas) < 0.12 and max(areas) > 0.9
    # Log-uniform in [-0.288, 0.288]: the mean of 400 draws has standard deviation 0.0083.
    assert abs(np.mean(ratios)) < 4 * 0.0083


def test_the_random_crop_resizes_its_box():
    image = noise(40, 60)
    top, left, height, width = CROP.box(40, 60, rng(3))
    expected = resize(image[top : top + height, left : left + width], (16, 16), "bilinear")
    np.testing.assert_array_equal(CROP({"image": image}, rng(3))["image"], expected)


def test_a_flip_mirrors_left_and_right_with_its_probability():
    image = noise(4, 6)
    flipped = [
        bool((HorizontalFlip(0.5)({"image": image}, rng(seed))["image"] == image[:, ::-1]).all())
        for seed in range(400)
    ]
    assert abs(np.mean(flipped) - 0.5) < 4 * 0.025  # the standard deviation of 400 coins
    for probability, expected in ((0.0, image), (1.0, image[:, ::-1])):
        result = HorizontalFlip(probability)({"image": image}, rng())["image"]
        np.testing.assert_array_equal(result, expected)


def test_evaluation_resizes_the_short_side_and_crops_the_centre():
    image = noise(30, 50)
    result = Evaluate(20, 16, "bicubic")({"image": image, "label": 3})
    expected = center_crop(resize_short_side(image, 20, "bicubic"), 16)
    np.testing.assert_array_equal(result["image"], expected)
    assert result["label"] == 3


@pytest.mark.parametrize(
    ("random_crop", "flip"), list(itertools.product((False, True), (0.0, 1.0)))
)
def test_every_image_leaves_as_a_contiguous_uint8_square(random_crop, flip):
    config = default_config()
    config.data.image_size = config.eval.crop = 24
    config.eval.resize = 30
    config.augment.random_resized_crop = random_crop
    config.augment.horizontal_flip = flip
    before = {"image": noise(33, 47), "label": np.int32(1)}
    for after in (train_transform(config)(before, rng()), evaluation_transform(config)(before)):
        assert after["image"].shape == (24, 24, 3) and after["image"].dtype == np.uint8
        assert after["image"].flags.c_contiguous
        assert after["label"] == 1
    assert before["image"].shape == (33, 47, 3)


def test_without_a_random_crop_training_sees_the_image_as_evaluation_does():
    config = default_config()
    image = {"image": noise(70, 90)}
    trained = train_transform(config)(image, rng())["image"]
    np.testing.assert_array_equal(trained, evaluation_transform(config)(image)["image"])


def test_the_same_generator_state_gives_the_same_image_also_after_pickling():
    transform = Train((CROP, HorizontalFlip(0.5)))
    image = {"image": noise(40, 60)}
    first = transform(image, rng(1))["image"]
    np.testing.assert_array_equal(transform(image, rng(1))["image"], first)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(transform))(image, rng(1))["image"], first
    )
    assert (transform(image, rng(2))["image"] != first).any()
