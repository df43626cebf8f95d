"""The changes of colours against torchvision's on Pillow images, exactly."""

import numpy as np
import pytest
from PIL import Image
from reference_torch import REQUIRED, torch  # noqa: F401 - it makes torchvision importable

from mobilevitv2_jax.data import segmentation

if REQUIRED:
    from torchvision.transforms import functional
else:
    functional = pytest.importorskip("torchvision.transforms.functional")

pytestmark = pytest.mark.oracle

PAIRS = {
    "adjust_brightness": ("adjust_brightness", (0.875, 1.0, 1.125)),
    "adjust_contrast": ("adjust_contrast", (0.5, 1.3, 1.5)),
    "adjust_saturation": ("adjust_saturation", (0.5, 1.1, 1.5)),
    "turn_hue": ("adjust_hue", (-0.05, -0.001, 0.0, 0.03, 0.05)),
}


@pytest.mark.parametrize("ours", PAIRS)
def test_a_change_is_torchvisions_pixel_by_pixel(ours):
    theirs, values = PAIRS[ours]
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 50, 3), np.uint8))
    for value in values:
        expected = np.asarray(getattr(functional, theirs)(picture, value))
        found = np.asarray(getattr(segmentation, ours)(picture, value))
        np.testing.assert_array_equal(found, expected)


def test_a_rotation_is_torchvisions():
    random = np.random.RandomState(0)
    example = {
        "image": random.randint(0, 256, (40, 50, 3), np.uint8),
        "label": random.randint(0, 21, (40, 50)).astype(np.uint8),
    }
    angle = np.random.default_rng(3).uniform(-10, 10)
    out = segmentation.Rotation(10)(example, np.random.default_rng(3))
    modes = functional.InterpolationMode
    for name, mode, fill in (("image", modes.BILINEAR, 0), ("label", modes.NEAREST, 255)):
        expected = functional.rotate(Image.fromarray(example[name]), angle, mode, fill=fill)
        np.testing.assert_array_equal(out[name], np.asarray(expected))
