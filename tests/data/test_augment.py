"""The transforms of training and evaluation."""

import dataclasses
import itertools
import math
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mobilevitv2_jax.config import default_config
from mobilevitv2_jax.data.augment import (
    Evaluate,
    HorizontalFlip,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Train,
    evaluation_transform,
    train_transform,
)
from mobilevitv2_jax.data.image import resize, resize_short_side
from mobilevitv2_jax.data.randaugment import OPERATIONS
from mobilevitv2_jax.processing import MobileViTImageProcessor

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


def test_the_random_crop_resizes_fast_where_asked():
    fast = dataclasses.replace(CROP, fast=True)
    image = noise(40, 60)
    top, left, height, width = CROP.box(40, 60, rng(3))
    cut = image[top : top + height, left : left + width]
    expected = cv2.resize(cut, (16, 16), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(fast({"image": image}, rng(3))["image"], expected)


def with_marked_operations(monkeypatch):
    """Replaces each operation by one that writes what it was called with into the image."""
    for number, (name, (_, signed)) in enumerate(list(OPERATIONS.items())):

        def mark(image, level, number=number):
            return np.concatenate([image, [[number, level]]])

        monkeypatch.setitem(OPERATIONS, name, (mark, signed))


def test_randaugment_draws_every_operation_with_equal_chances_and_signs(monkeypatch):
    with_marked_operations(monkeypatch)
    names = list(OPERATIONS)
    drawn = [
        RandAugment(2, 9)({"image": np.zeros((0, 2))}, rng(seed))["image"] for seed in range(700)
    ]
    assert {len(image) for image in drawn} == {2}
    numbers, levels = np.concatenate(drawn).T
    # 1,400 draws of 14: the standard deviation of a count of 100 is 9.6.
    counts = np.bincount(numbers.astype(int), minlength=14)
    assert np.abs(counts - 100).max() < 4 * 9.6
    np.testing.assert_allclose(np.abs(levels), 0.3)
    negative = {names[int(number)] for number in numbers[levels < 0]}
    assert negative == {name for name, (_, signed) in OPERATIONS.items() if signed}
    signs = levels[np.isin(numbers, [names.index(name) for name in negative])]
    assert abs((signs < 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(len(signs))


@settings(derandomize=True, deadline=None)
@given(height=st.integers(1, 80), width=st.integers(1, 80), seed=st.integers(0, 2**32))
def test_erasing_blackens_at_most_one_box_and_nothing_else(height, width, seed):
    image = noise(height, width) // 2 + 100
    before = image.copy()
    erased = RandomErasing(1.0)({"image": image}, rng(seed))["image"]
    np.testing.assert_array_equal(image, before)
    black = (erased == 0).all(-1)
    rows, columns = black.any(1), black.any(0)
    assert (black == rows[:, None] & columns).all()
    for line in (rows, columns):
        assert np.abs(np.diff(line.astype(int), prepend=0, append=0)).sum() in (0, 2)
    np.testing.assert_array_equal(erased[~black], image[~black])


def test_erased_boxes_have_the_sizes_and_ratios_of_torchvision_and_come_with_their_probability():
    image = np.full((200, 200, 3), 9, np.uint8)
    boxes = []
    for seed in range(800):
        black = (RandomErasing(0.25)({"image": image}, rng(seed))["image"] == 0).all(-1)
        if black.any():
            boxes.append((black.any(1).sum(), black.any(0).sum()))
    assert abs(len(boxes) / 800 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 800)
    heights, widths = np.array(boxes).T
    # Sides are at least 15 pixels here, and rounded by half of one.
    slack = 1 + 1 / 15
    areas, ratios = heights * widths / 200**2, heights / widths
    assert 0.02 / slack <= areas.min() < 0.05 and 0.28 < areas.max() <= 0.33 * slack
    assert 0.3 / slack <= ratios.min() < 0.5 and 2.2 < ratios.max() <= 3.3 * slack


def test_without_erasing_the_image_is_the_same():
    image = {"image": noise(9, 9)}
    assert RandomErasing(0.0)(image, rng()) is image


@pytest.mark.parametrize(
    ("width", "left"), [(40, 12), (41, 12), (42, 13), (43, 13), (44, 14), (16, 0)]
)
def test_evaluation_resizes_the_short_side_and_crops_the_centre_as_the_processor_does(width, left):
    image = noise(32, 2 * width)
    result = Evaluate(16, 16, "bicubic")({"image": image, "label": 3})
    resized = resize_short_side(image, 16, "bicubic")
    assert resized.shape[1] == width
    np.testing.assert_array_equal(result["image"], resized[:, left : left + 16])
    processor = MobileViTImageProcessor(
        size={"shortest_edge": 16}, crop_size=16, resample=3, do_flip_channel_order=False
    )
    theirs = processor(image)["pixel_values"][0]
    np.testing.assert_array_equal(np.rint(theirs * 255), result["image"])
    assert result["label"] == 3


@pytest.mark.parametrize(
    ("random_crop", "chance"), list(itertools.product((False, True), (0.0, 1.0)))
)
def test_every_image_leaves_as_a_contiguous_uint8_square(random_crop, chance):
    config = default_config()
    config.data.image_size = config.eval.crop = 24
    config.eval.resize = 30
    config.augment.random_resized_crop = random_crop
    config.augment.horizontal_flip = config.augment.random_erasing = chance
    config.augment.randaugment = 3 * int(chance)
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


def test_the_recipe_follows_its_config_in_the_order_of_the_original_release():
    config = default_config()
    config.augment.update(
        {"random_resized_crop": True, "fast_resize": True, "horizontal_flip": 0.5}
        | {"randaugment": 2, "randaugment_magnitude": 7, "random_erasing": 0.25}
    )
    assert train_transform(config).steps == (
        RandomResizedCrop(64, (0.08, 1.0), (3 / 4, 4 / 3), "bicubic", fast=True),
        HorizontalFlip(0.5),
        RandAugment(2, 7),
        RandomErasing(0.25),
    )


def test_the_same_generator_state_gives_the_same_image_also_after_pickling():
    transform = Train((CROP, HorizontalFlip(0.5), RandAugment(2, 9), RandomErasing(0.5)))
    image = {"image": noise(40, 60)}
    first = transform(image, rng(1))["image"]
    np.testing.assert_array_equal(transform(image, rng(1))["image"], first)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(transform))(image, rng(1))["image"], first
    )
    assert (transform(image, rng(2))["image"] != first).any()
