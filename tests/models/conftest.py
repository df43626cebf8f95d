"""A classifier small enough to be built for every test."""

import numpy as np
import pytest
from flax import nnx

import mobilevitv2_jax as mv

SMALL = {
    "width_multiplier": 0.25,
    "n_attn_blocks": (1, 1, 1),
    "base_attn_unit_dims": (64, 96, 128),
    "num_labels": 5,
}


@pytest.fixture
def make_model():
    """Returns a function that makes a small classifier, in evaluation mode, of changed fields."""

    def make(kind=mv.MobileViTV2ForImageClassification, seed=0, **fields):
        model = kind(mv.MobileViTV2Config(**{**SMALL, **fields}), rngs=nnx.Rngs(seed))
        model.eval()
        return model

    return make


@pytest.fixture
def images():
    """Returns a function that makes images of a size, uniform in [0, 1]."""

    def make(height=32, width=None, batch=2, channels=3):
        shape = (batch, height, width or height, channels)
        return np.random.RandomState(0).uniform(size=shape).astype(np.float32)

    return make
