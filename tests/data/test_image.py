"""Decoding, resizing and cropping of single images."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from mobilevitv2_jax import images
from mobilevitv2_jax.data.image import CorruptError, center_crop, decode, resize, resize_short_side


def picture(height, width, seed=0):
    """Returns a smooth random RGB image, which JPEG can hold."""
    small = np.random.RandomState(seed).randint(0, 256, (6, 6, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def encode(image, extension=".jpg"):
    return cv2.imencode(extension, image[..., ::-1])[1].tobytes()


def with_orientation(jpeg, orientation):
    """Returns the JPEG with an EXIF tag that asks for the picture to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    block = exif.tobytes()
    if not block.startswith(b"Exif"):
        block = b"Exif\0\0" + block
    return jpeg[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + jpeg[2:]


def test_a_png_is_decoded_exactly_and_in_rgb_order():
    image = picture(13, 17)
    np.testing.assert_array_equal(decode(encode(image, ".png")), image)


def test_a_jpeg_is_decoded_in_rgb_order():
    image = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    # JPEG's conversion to YCbCr and back rounds: at most 2 grey levels on a flat image.
    np.testing.assert_allclose(decode(encode(image)).astype(int), image, atol=2)


def test_the_exif_orientation_is_ignored():
    jpeg = encode(picture(20, 30))
    turned = with_orientation(jpeg, 6)
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (30, 20)
    np.testing.assert_array_equal(decode(turned), decode(jpeg))


def test_a_grey_image_becomes_rgb():
    grey = picture(9, 9)[..., 0]
    decoded = decode(cv2.imencode(".png", grey)[1].tobytes())
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=-1))


def transparent(kind):
    """Returns colours with opacity 0, 128 and 255, in a file."""
    colours = np.dstack([picture(9, 12), np.repeat(np.uint8([[0, 128, 255]]), 4, axis=1)[[0] * 9]])
    image, file = Image.fromarray(colours), io.BytesIO()
    if kind == "palette":
        opacity = bytes([0, 128, *[255] * 254])
        image.convert("RGB").quantize(16).save(file, "PNG", transparency=opacity)
    elif kind == "colour":  # of all that are there, one is transparent
        image.convert("RGB").save(file, "PNG", transparency=tuple(map(int, colours[2, 3, :3])))
    elif kind == "webp":
        image.save(file, "WEBP", lossless=True, exact=True)
    else:
        image.convert(kind).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "colour", "webp"])
def test_what_is_transparent_is_laid_on_white_as_in_prediction(tmp_path, kind):
    (tmp_path / "image").write_bytes(transparent(kind))
    decoded = decode(transparent(kind))
    assert (decoded == 255).all(axis=-1).any()
    np.testing.assert_array_equal(decoded, images.to_array(tmp_path / "image"))


def test_a_transparent_image_is_not_turned_and_refused_where_it_is_cut_off():
    image, file = Image.fromarray(np.zeros((4, 6, 4), np.uint8)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file, "PNG", exif=exif)
    assert decode(file.getvalue()).shape == (4, 6, 3)
    data = transparent("RGBA")[:-40]
    with pytest.raises(CorruptError, match=f"cannot decode {len(data)} bytes as an image"):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"not an image", encode(picture(64, 64))[:200]])
def test_bytes_that_are_not_a_whole_image_are_refused(data):
    with pytest.raises(ValueError, match=f"cannot decode {len(data)} bytes as an image"):
        decode(data)


@pytest.mark.parametrize("size", [(24, 24), (50, 20), (90, 130)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_equals_pillow(size, interpolation):
    image = picture(75, 100)
    height, width = size
    expected = Image.fromarray(image).resize(
        (width, height), Image.Resampling[interpolation.upper()]
    )
    np.testing.assert_array_equal(resize(image, size, interpolation), np.asarray(expected))


def test_another_interpolation_is_refused():
    with pytest.raises(ValueError, match="must be bilinear or bicubic, got 'nearest'"):
        resize(picture(8, 8), (4, 4), "nearest")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((375, 500), (288, 384)),
        ((500, 375), (384, 288)),
        ((100, 151), (288, 434)),
        ((9, 9), (288, 288)),
    ],
)
def test_the_short_side_gets_the_size_and_the_long_side_is_truncated(before, after):
    resized = resize_short_side(picture(*before), 288, "bilinear")
    assert resized.shape == (*after, 3)
    assert max(after) == int(288 * max(before) / min(before))  # torchvision's formula


@pytest.mark.parametrize(("height", "width"), [(10, 10), (11, 16), (8, 9), (8, 8)])
def test_the_central_crop_begins_at_half_the_margin(height, width):
    image = picture(height, width)
    top, left = (height - 8) // 2, (width - 8) // 2
    np.testing.assert_array_equal(center_crop(image, 8), image[top : top + 8, left : left + 8])


@pytest.mark.parametrize(("height", "width"), [(5, 5), (5, 12), (13, 6)])
def test_an_image_smaller_than_the_crop_is_padded_with_zeros(height, width):
    image = picture(height, width)
    expected = np.zeros((8, 8, 3), np.uint8)
    for row, column in np.ndindex(8, 8):
        y, x = row + (height - 8) // 2, column + (width - 8) // 2
        if 0 <= y < height and 0 <= x < width:
            expected[row, column] = image[y, x]
    np.testing.assert_array_equal(center_crop(image, 8), expected)
