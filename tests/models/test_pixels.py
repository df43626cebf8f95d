"""What a model is given of a stored image."""

import numpy as np
import pytest

from mobilevitv2_jax.config import default_config
from mobilevitv2_jax.models.pixels import Pixels

IMAGES = np.random.RandomState(0).randint(0, 256, (2, 3, 4, 3)).astype(np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_by_default_pixels_are_rgb_in_0_to_1_as_in_the_published_recipe():
    pixels = Pixels.from_config(default_config())
    assert pixels == Pixels()
    found = np.asarray(pixels(IMAGES))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, IMAGES.astype(np.float32) / 255)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_mean_and_deviation_belong_to_their_channels_in_either_order(order):
    config = default_config()
    config.data.update({"mean": MEAN, "std": STD, "channel_order": order})
    expected = (IMAGES / 255 - MEAN) / STD
    if order == "bgr":
        expected = expected[..., [2, 1, 0]]
    # float32, values up to 2.7
    np.testing.assert_allclose(Pixels.from_config(config)(IMAGES), expected, atol=1e-6)
