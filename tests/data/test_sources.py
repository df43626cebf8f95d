"""The sources, and what importing the data wing may load."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mobilevitv2_jax.data.sources import load_source


def test_the_digits_are_split_into_1437_and_360_without_overlap():
    values, _ = load_digits(return_X_y=True)
    everything = np.rint(values * (255 / 16)).astype(np.uint8)
    splits = [load_source("digits", split) for split in ("train", "test")]
    assert [len(source) for source in splits] == [1437, 360]
    # No digit occurs twice in the data, so equal multisets of images mean disjoint splits.
    assert len(np.unique(everything, axis=0)) == len(everything)
    together = np.concatenate([source.images[..., 0].reshape(-1, 64) for source in splits])
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(everything, axis=0))


def test_each_class_has_the_same_share_of_both_splits():
    train, test = (
        np.bincount(load_source("digits", split).labels, minlength=10)
        for split in ("train", "test")
    )
    # A stratified split rounds each class to a whole example.
    np.testing.assert_allclose(test, (train + test) * 360 / 1797, atol=1)


def test_loading_a_split_twice_gives_the_same_examples():
    first, second = load_source("digits", "train"), load_source("digits", "train")
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_an_example_is_a_grey_rgb_image_over_the_full_range_and_its_label():
    source = load_source("digits", "test")
    example = source[7]
    assert example["image"].shape == (8, 8, 3) and example["image"].dtype == np.uint8
    assert (example["image"] == example["image"][..., :1]).all()
    assert example["label"].dtype == np.int32
    assert (source.images.min(), source.images.max()) == (0, 255)
    assert source.class_names == tuple("0123456789")
    assert source.fingerprint == "digits/test/360"


def test_a_source_survives_pickling_and_is_cheap_to_send_to_a_worker():
    source = load_source("digits", "train")
    data = pickle.dumps(source)
    assert len(data) < 300_000  # 1437 images of 192 bytes, and labels
    np.testing.assert_array_equal(pickle.loads(data)[5]["image"], source[5]["image"])


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "digit",
            "train",
            r"data set must be one of .*digits, .*synthetic, .*got 'digit' .*'digits'",
        ),
        ("digits", "tests", r"split of digits must be one of train, test, got 'tests' .*'test'"),
    ],
)
def test_an_unknown_name_or_split_is_refused_with_the_allowed_ones(name, split, message):
    with pytest.raises(ValueError, match=message):
        load_source(name, split)


@pytest.mark.slow
def test_sources_and_transforms_load_neither_jax_nor_a_data_set_reader():
    program = (
        "import sys\n"
        "from mobilevitv2_jax.data import augment, image, sources\n"
        "heavy = {'jax', 'flax', 'grain', 'sklearn', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from mobilevitv2_jax.data import digits\n"
        "heavy = {'jax', 'flax', 'grain', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
