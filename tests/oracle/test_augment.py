"""The training and the evaluation transform against torchvision's, on Pillow images."""

import cv2
import numpy as np
import pytest
import reference_torch  # noqa: F401 # skips without torch, and lets torchvision be imported
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, autoaugment

from mobilevitv2_jax.data.augment import Evaluate
from mobilevitv2_jax.data.image import decode
from mobilevitv2_jax.data.randaugment import OPERATIONS

pytestmark = pytest.mark.oracle

# Of a shear, at these magnitudes with a negative sign, one pixel in some rows or columns comes from
# exactly the image's edge, and the tangent of an arc tangent decides whether it is black.
ON_THE_EDGE = {4, 12, 20, 28}


def picture(height, width, seed=0):
    """Returns noise over a smooth image: sharp edges and flat areas both."""
    random = np.random.RandomState(seed)
    smooth = cv2.resize(random.randint(0, 256, (6, 6, 3)).astype(np.uint8), (width, height))
    noise = random.randint(-40, 40, (height, width, 3)) * (smooth[..., :1] > 128)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_at_every_magnitude_is_torchvisions_within_one_grey_level(name):
    apply, signed = OPERATIONS[name]
    for image in (picture(128, 128), picture(97, 131, seed=1)):
        magnitudes, has_sign = autoaugment.RandAugment()._augmentation_space(31, image.shape[:2])[
            name
        ]
        assert has_sign == signed
        for number in range(31):
            for sign in (1, -1) if signed else (1,):
                if name.startswith("Shear") and sign < 0 and number in ON_THE_EDGE:
                    continue
                magnitude = sign * float(magnitudes[number] if magnitudes.ndim else 0)
                expected = autoaugment._apply_op(
                    Image.fromarray(image), name, magnitude, InterpolationMode.BILINEAR, None
                )
                found = apply(image, sign * number / 30).astype(int)
                assert np.abs(found - np.asarray(expected)).max() <= 1, (number, sign)


@pytest.mark.parametrize("name", ["ShearX", "ShearY"])
@pytest.mark.parametrize("number", sorted(ON_THE_EDGE))
def test_a_shear_from_the_very_edge_differs_in_a_pixel_of_some_rows_or_columns(name, number):
    image = picture(128, 128)
    magnitude = -float(np.float32(0.3) * number / 30)
    expected = autoaugment._apply_op(
        Image.fromarray(image), name, magnitude, InterpolationMode.BILINEAR, None
    )
    found = OPERATIONS[name][0](image, -number / 30).astype(int)
    apart = (np.abs(found - np.asarray(expected)) > 1).any(-1)
    assert apart.sum(1 if name == "ShearX" else 0).max() <= 1


@pytest.mark.parametrize(("resize", "crop"), [(288, 256), (384, 384)])
def test_evaluation_is_that_of_the_published_results_within_one_grey_level(resize, crop):
    theirs = transforms.Resize(resize, InterpolationMode.BICUBIC)
    # Margins of the crop that halves leave whole, and that they do not: 0, 1, 2 and 3 modulo 4.
    # Of 3 modulo 4 torchvision's crop begins a pixel later: the resized images are compared.
    for height, width in ((375, 500), (500, 375), (333, 500), (288, 291), (300, 301), (640, 427)):
        jpeg = cv2.imencode(".png", picture(height, width))[1].tobytes()
        image = decode(jpeg)
        resized = np.asarray(theirs(Image.fromarray(image)))
        top, left = ((side - crop) // 2 for side in resized.shape[:2])
        expected = resized[top : top + crop, left : left + crop]
        found = Evaluate(resize, crop, "bicubic")({"image": image})["image"].astype(int)
        assert np.abs(found - expected).max() <= 1, (height, width)
