"""Joint transforms of images and maps, and the scenes that they are applied to."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilevitv2_jax.data import segmentation
from mobilevitv2_jax.data.loader import evaluation_batches, train_batches
from mobilevitv2_jax.data.segmentation import (
    VOID,
    HorizontalFlip,
    RandomCrop,
    RandomShortSide,
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
