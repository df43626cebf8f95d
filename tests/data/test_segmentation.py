"""Joint transforms of images and maps, and the scenes that they are applied to."""

import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilevitv2_jax.config import default_config
from mobilevitv2_jax.data import segmentation
from mobilevitv2_jax.data.loader import evaluation_batches, train_batches
from mobilevitv2_jax.data.segmentation import (
    VOID,
    Blur,
    HorizontalFlip,
    Photometric,
    RandomCrop,
    RandomShortSide,
    Rotation,
    Squash,
)
from mobilevitv2_jax.data.sources import load_source

sizes = st.integers(1, 40)


def position_example(height: int, width: int) -> dict:
    """Returns an image whose first channel, and a map, that both tell a pixel's own position."""
    positions = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    return {"image": np.repeat(positions[..., None], 3, axis=-1), "label": positions}


@given(height=sizes, width=sizes, seed=st.integers(0, 1000))
def test_flip_and_crop_move_image_and_map_alike(height, width, seed):
    rng = np.random.default_rng(seed)
    example = RandomCrop(16)(HorizontalFlip(0.5)(position_example(height, width), rng), rng)
    assert example["image"].shape == (16, 16, 3)
    inside = example["label"] != VOID
    np.testing.assert_array_equal(example["image"][..., 0][inside], example["label"][inside])
    # What was filled in is black and void.
    filled = max(0, 16 - height) * 16 + max(0, 16 - width) * min(height, 16)
    assert (~inside).sum() >= filled


@pytest.mark.parametrize(
    "transform",
    [Squash(24, "bicubic"), RandomShortSide(20, 60, 70, "bilinear"), RandomCrop(24)],
    ids=lambda transform: type(transform).__name__,
)
def test_no_transform_invents_a_class(transform):
    scene = load_source("digit_scenes", "train")[3]
    seen = set(np.unique(transform(scene, np.random.default_rng(0))["label"]))
    assert seen <= set(np.unique(scene["label"])) | {VOID}


def test_image_and_map_stay_aligned_when_both_are_resized():
    # A gradient from left to right in the image, and its value, rounded, as the map.
    ramp = np.tile(np.linspace(0, 240, 120).astype(np.uint8), (90, 1))
    example = {"image": np.repeat(ramp[..., None], 3, axis=-1), "label": ramp}
    out = RandomShortSide(45, 135, 1000, "bilinear")(example, np.random.default_rng(1))
    difference = np.abs(out["image"][..., 0].astype(int) - out["label"])
    assert difference.max() <= 4  # two grey levels lie between neighbouring pixels


def test_the_short_side_is_drawn_from_the_range_and_the_long_side_is_capped():
    rng = np.random.default_rng(0)
    transform = RandomShortSide(20, 30, 40, "bilinear")
    shapes = [transform(position_example(12, 16), rng)["label"].shape for _ in range(200)]
    assert {min(shape) for shape in shapes} == set(range(20, 31))
    long = transform(position_example(10, 100), rng)["label"].shape
    assert long == (4, 40)


RECIPE = segmentation.Train(
    (
        RandomShortSide(24, 72, 96, "bicubic"),
        HorizontalFlip(0.5),
        RandomCrop(48, 0.75),
        Blur(0.5),
        Photometric(0.5),
        Rotation(10),
    )
)
"""The recipe's transforms in its order, on smaller images."""


def test_the_config_asks_for_the_transforms_in_the_order_of_the_recipe():
    config = default_config()
    config.data.image_size = 48
    config.augment.update(
        short_side=(24, 72),
        long_side=96,
        horizontal_flip=0.5,
        largest_class=0.75,
        blur=0.5,
        photometric=0.5,
        rotation=10.0,
    )
    assert segmentation.train_transform(config) == RECIPE


@given(
    height=sizes,
    width=sizes,
    seed=st.integers(0, 1000),
    classes=st.sets(st.integers(0, VOID), min_size=1, max_size=4),
)
@settings(deadline=None)
def test_the_whole_recipe_invents_no_class_and_depends_on_its_generator_alone(
    height, width, seed, classes
):
    random = np.random.RandomState(seed)
    example = {
        "image": random.randint(0, 256, (height, width, 3), np.uint8),
        "label": random.choice(sorted(classes), (height, width)).astype(np.uint8),
    }
    kept = {name: array.copy() for name, array in example.items()}
    out, again = (RECIPE(example, np.random.default_rng(seed)) for _ in range(2))
    assert out["image"].shape == (48, 48, 3) and out["image"].dtype == np.uint8
    assert out["label"].shape == (48, 48) and out["label"].dtype == np.uint8
    assert set(np.unique(out["label"])) <= classes | {VOID}
    for name in ("image", "label"):
        np.testing.assert_array_equal(out[name], again[name])
        np.testing.assert_array_equal(example[name], kept[name])


@given(height=st.integers(60, 120), width=st.integers(60, 120), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_image_and_map_stay_aligned_through_all_that_moves_them(height, width, seed):
    """Red and green tell a pixel's own place, and so does the map, by cells of 20 x 20 levels."""
    rows, columns = np.mgrid[:height, :width]
    red, green = 20 + 200 * rows / (height - 1), 20 + 200 * columns / (width - 1)
    cells = (red // 20).astype(np.uint8) * 12 + (green // 20).astype(np.uint8)
    image = np.stack([red, green, np.full_like(red, 128)], -1).round().astype(np.uint8)
    moving = [step for step in RECIPE.steps if not isinstance(step, Blur | Photometric)]
    out = segmentation.Train(tuple(moving))(
        {"image": image, "label": cells}, np.random.default_rng(seed)
    )
    # Next to what was filled in, interpolation blends with black: a margin of two pixels.
    inside = cv2.erode((out["label"] != VOID).astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
    assert inside.any()
    for channel, cell in ((0, out["label"] // 12), (1, out["label"] % 12)):
        centre = 20 * cell[inside].astype(float) + 10
        # Half a cell, and up to two pixels of the shrunken image (200 / 24 levels each).
        assert np.abs(out["image"][..., channel][inside] - centre).max() <= 10 + 2 * 200 / 24


@pytest.mark.parametrize("transform", [Blur(1.0), Photometric(1.0)], ids=lambda t: type(t).__name__)
def test_colours_change_and_the_map_stays(transform):
    scene = load_source("digit_scenes", "train")[3]
    out = transform(scene, np.random.default_rng(0))
    assert out["label"] is scene["label"]
    assert (out["image"] != scene["image"]).any()
    unchanged = type(transform)(0.0)(scene, np.random.default_rng(0))
    np.testing.assert_array_equal(unchanged["image"], scene["image"])


def test_a_crop_is_drawn_again_where_one_class_is_too_large():
    """Tolerance: 0.12, more than three standard errors of a share in 200 draws."""
    label = np.zeros((100, 100), np.uint8)
    label[70:92, 70:92] = 5
    example = {"image": np.zeros((100, 100, 3), np.uint8), "label": label}

    def accepted(window):
        return (window == 0).mean() < 0.75

    windows = np.lib.stride_tricks.sliding_window_view(label, (30, 30)).reshape(-1, 30, 30)
    one_draw = np.mean([accepted(window) for window in windows])
    for largest_class, expected in ((1.0, one_draw), (0.75, 1 - (1 - one_draw) ** 10)):
        crop, rng = RandomCrop(30, largest_class), np.random.default_rng(0)
        found = np.mean([accepted(crop(example, rng)["label"]) for _ in range(200)])
        assert abs(found - expected) < 0.12


def test_a_crop_without_any_class_is_not_asked_for_for_ever():
    label = np.full((40, 40), VOID, np.uint8)
    out = RandomCrop(30, 0.75)(
        {"image": np.zeros((40, 40, 3), np.uint8), "label": label}, np.random.default_rng(0)
    )
    assert out["label"].shape == (30, 30)


def test_a_rotation_fills_with_black_and_void_and_keeps_the_size():
    example = {
        "image": np.full((40, 60, 3), 200, np.uint8),
        "label": np.full((40, 60), 3, np.uint8),
    }
    out = Rotation(10)(example, np.random.default_rng(0))
    void = out["label"] == VOID
    assert out["image"].shape == (40, 60, 3) and 0 < void.mean() < 0.2
    inner = cv2.erode(void.astype(np.uint8), np.ones((3, 3)), borderValue=1) > 0
    assert (out["image"][inner] == 0).all() and (out["image"][~void] > 0).all()


def test_scenes_are_the_same_every_time_and_show_void_around_every_object():
    source = load_source("digit_scenes", "train")
    again = pickle.loads(pickle.dumps(source))
    shapes = set()
    for index in range(12):
        scene, copy = source[index], again[index]
        np.testing.assert_array_equal(scene["image"], copy["image"])
        np.testing.assert_array_equal(scene["label"], copy["label"])
        shapes.add(scene["label"].shape)
        # No object touches the background: one step in any direction ends in the object, or void.
        label = scene["label"].astype(int)
        for a, b in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
            touching = (a != b) & (a != VOID) & (b != VOID)
            assert not touching.any()
    assert len(shapes) > 6, "sizes vary"


def test_scenes_hold_every_class_and_both_splits_use_their_own_digits():
    train, test = (load_source("digit_scenes", split) for split in ("train", "test"))
    assert train.class_names == ("background", *"0123456789")
    seen = set().union(*(np.unique(train[index]["label"]) for index in range(60)))
    assert seen == {*range(11), VOID}
    assert train.digits.split == "train" and test.digits.split == "test"
    assert not np.array_equal(train[0]["image"], test[0]["image"])


def test_the_loader_batches_images_with_their_maps():
    source = load_source("digit_scenes", "test")
    crop = segmentation.Train((RandomCrop(32),))
    with train_batches(source, crop, batch_size=4, seed=0, threads=0) as batches:
        batch = next(batches)
    assert batch["image"].shape == (4, 32, 32, 3)
    assert batch["label"].shape == (4, 32, 32) and batch["label"].dtype == np.uint8
    with evaluation_batches(source, Squash(32, "bicubic"), batch_size=7, threads=0) as batches:
        counted = sum(batch["mask"].sum() for batch in batches)
    assert counted == len(source)
