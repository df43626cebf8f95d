"""The operations of RandAugment against Pillow; `oracle/test_augment.py` has torchvision itself."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mobilevitv2_jax.data.randaugment import OPERATIONS

BILINEAR = Image.Resampling.BILINEAR
LEVELS = [0, 1, 5, 9, 17, 25, 30]  # of the 31 magnitudes; 9 is that of the recipes


def pictures():
    """Returns images of every kind that an operation may meet, of odd and even sides."""
    random = np.random.RandomState(0)
    noise = random.randint(0, 256, (61, 48, 3)).astype(np.uint8)
    smooth = cv2.resize(random.randint(0, 256, (6, 6, 3)).astype(np.uint8), (64, 64))
    stripes = np.zeros((40, 33, 3), np.uint8)
    stripes[:, ::2] = 255
    return {
        "noise": noise,
        "smooth": smooth,
        "pale": smooth // 4 + 60,
        "grey": np.repeat(noise[..., :1], 3, axis=-1),
        "flat": np.full((20, 30, 3), (10, 128, 250), np.uint8),
        "stripes": stripes,
    }


def enhance(kind):
    return lambda image, m: getattr(ImageEnhance, kind)(image).enhance(1 + 0.9 * m)


def affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BILINEAR)


def columns(image, m):
    return int(150 / 331 * image.width * m)


def rows(image, m):
    return int(150 / 331 * image.height * m)


# What torchvision's `_apply_op` does with a Pillow image, at m times the strongest magnitude.
REFERENCES = {
    "Identity": lambda image, m: image,
    "ShearX": lambda image, m: affine(image, 1, 0.3 * m, 0, 0, 1, 0),
    "ShearY": lambda image, m: affine(image, 1, 0, 0, 0.3 * m, 1, 0),
    "TranslateX": lambda image, m: affine(image, 1, 0, -columns(image, m), 0, 1, 0),
    "TranslateY": lambda image, m: affine(image, 1, 0, 0, 0, 1, -rows(image, m)),
    "Rotate": lambda image, m: image.rotate(30 * m, BILINEAR),
    "Brightness": enhance("Brightness"),
    "Color": enhance("Color"),
    "Contrast": enhance("Contrast"),
    "Sharpness": enhance("Sharpness"),
    "Posterize": lambda image, m: ImageOps.posterize(image, 8 - round(4 * m)),
    "Solarize": lambda image, m: ImageOps.solarize(image, 255 * (1 - m)),
    "AutoContrast": lambda image, m: ImageOps.autocontrast(image),
    "Equalize": lambda image, m: ImageOps.equalize(image),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_an_operation_is_that_of_pillow_within_one_grey_level(name):
    apply, signed = OPERATIONS[name]
    for kind, image in pictures().items():
        for level in {sign * m / 30 for m in LEVELS for sign in ((1, -1) if signed else (1,))}:
            before = image.copy()
            found = apply(image, level).astype(int)
            expected = np.asarray(REFERENCES[name](Image.fromarray(image), level))
            assert np.abs(found - expected).max() <= 1, (kind, level)
            np.testing.assert_array_equal(image, before)  # the operation wrote elsewhere


def test_the_operations_are_all_of_torchvisions():
    assert OPERATIONS.keys() == REFERENCES.keys()


@pytest.mark.parametrize("name", sorted(set(REFERENCES) - {"Identity"}))
def test_every_operation_but_the_identity_changes_a_picture(name):
    # Equalize and AutoContrast leave some pictures as they are: the pale one they do not.
    image = pictures()["pale"]
    assert (OPERATIONS[name][0](image, 0.9) != image).any()


def test_a_positive_translation_goes_right_and_down_and_brings_black_in():
    image = np.full((100, 200, 3), 7, np.uint8)
    right = OPERATIONS["TranslateX"][0](image, 0.5)  # 150 / 331 * 200 / 2 = 45 pixels
    assert not right[:, :45].any() and (right[:, 45:] == 7).all()
    up = OPERATIONS["TranslateY"][0](image, -0.5)  # 22 pixels
    assert not up[-22:].any() and (up[:-22] == 7).all()
