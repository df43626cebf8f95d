"""The handwritten digits that scikit-learn brings along: 1,797 grey images of 8x8 pixels.

They are the test set of the UCI "Optical Recognition of Handwritten Digits" data. Their file is
read without scikit-learn, whose import takes two seconds of every process.
"""

from __future__ import annotations

import importlib.util
import pathlib

import numpy as np

from mobilevitv2_jax.data.sources import ArraySource

SPLITS = ("train", "test")

_FILE = "datasets/data/digits.csv.gz"  # of scikit-learn: 64 values from 0 to 16, and the class
_HELD_OUT = 360  # a fifth, stratified by class; the split is part of every figure we report


def load(split: str, directory: str = "") -> ArraySource:
    """Returns the 1,437 digits of "train" or the 360 of "test", as uint8 [8, 8, 3].

    Args:
        split: one of `SPLITS`.
        directory: unused; the file is where scikit-learn is installed.
    """
    package = importlib.util.find_spec("sklearn")
    assert package and package.origin  # a dependency of this package
    table = np.loadtxt(pathlib.Path(package.origin).parent / _FILE, delimiter=",")
    values, labels = table[:, :-1], table[:, -1].astype(np.int32)
    chosen = stratified(labels, _HELD_OUT)[SPLITS.index(split)]
    grey = np.rint(values[chosen].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey, 3, axis=-1)
    return ArraySource("digits", split, images, labels[chosen], tuple("0123456789"))


def stratified(labels: np.ndarray, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which examples to train on and which to hold out, each class in proportion.

    They are those of scikit-learn's `train_test_split(stratify=labels, random_state=0)`, in its
    order, and stay so whatever its next version draws.
    """
    random = np.random.RandomState(0)
    counts = np.bincount(labels)
    kept = _shares(counts, len(labels) - held_out, random)
    left_out = _shares(counts - kept, held_out, random)
    train, test = [], []
    for label, (first, second) in enumerate(zip(kept, left_out, strict=True)):
        members = random.permutation(np.flatnonzero(labels == label))
        train.append(members[:first])
        test.append(members[first : first + second])
    return random.permutation(np.concatenate(train)), random.permutation(np.concatenate(test))


def _shares(counts: np.ndarray, total: int, random: np.random.RandomState) -> np.ndarray:
    """Divides a total in proportion to counts: the largest remainders are rounded up."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    remainders = exact - shares
    for remainder in np.unique(remainders)[::-1]:
        (equal,) = np.nonzero(remainders == remainder)
        missing = min(len(equal), int(total - shares.sum()))
        if missing:
            shares[random.choice(equal, missing, replace=False)] += 1
    return shares.astype(int)
