"""The handwritten digits that scikit-learn brings along: 1,797 grey images of 8x8 pixels.

They are the test set of the UCI "Optical Recognition of Handwritten Digits" data.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mobilevitv2_jax.data.sources import ArraySource

SPLITS = ("train", "test")

_HELD_OUT = 360  # a fifth, stratified by class; the split is part of every figure we report


def load(split: str, directory: str = "") -> ArraySource:
    """Returns the 1,437 digits of "train" or the 360 of "test", as uint8 [8, 8, 3].

    Args:
        split: one of `SPLITS`.
        directory: unused; scikit-learn knows where its files are.
    """
    values, labels = load_digits(return_X_y=True)
    chosen = train_test_split(
        np.arange(len(labels)), test_size=_HELD_OUT, stratify=labels, random_state=0
    )[SPLITS.index(split)]
    grey = np.rint(values[chosen].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)  # 0..16
    images = np.repeat(grey, 3, axis=-1)
    return ArraySource(
        "digits", split, images, labels[chosen].astype(np.int32), tuple("0123456789")
    )
