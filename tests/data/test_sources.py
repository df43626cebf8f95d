"""The sources, and what importing the data wing may load."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mobilevitv2_jax.data.digits import stratified
from mobilevitv2_jax.data.sources import load_source


def test_the_digits_are_those_of_scikit_learn_in_its_stratified_split():
    values, labels = load_digits(return_X_y=True)
    grey = np.rint(values * (255 / 16)).astype(np.uint8)
    splits = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    for split, chosen in zip(("train", "test"), splits, strict=True):
        source = load_source("digits", split)
        np.testing.assert_array_equal(source.images[..., 0].reshape(-1, 64), grey[chosen])
        np.testing.assert_array_equal(source.labels, labels[chosen])
    assert list(map(len, splits)) == [1437, 360]


@pytest.mark.parametrize("counts", [(5, 5, 5), (4, 7, 30, 2)])
@pytest.mark.parametrize("held_out", [4, 7, 10])
def test_equal_remainders_are_rounded_as_by_scikit_learn(counts, held_out):
    labels = np.random.RandomState(1).permutation(np.repeat(np.arange(len(counts)), counts))
    found = stratified(labels, held_out)
    expected = train_test_split(
        np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=0
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


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
