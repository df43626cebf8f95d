"""Pictures of every kind come in as a person sees them; what is none is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mobilevitv2_jax import images
from mobilevitv2_jax.data.maps import decode_map
from mobilevitv2_jax.errors import ImageError
from mobilevitv2_jax.images import to_array, to_map

CORNERS = np.zeros((4, 6, 3), np.uint8)
CORNERS[:2, :3], CORNERS[2:, :3] = (255, 0, 0), (0, 255, 0)
CORNERS[:2, 3:], CORNERS[2:, 3:] = (0, 0, 255), (255, 255, 255)
GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


def corners(mode="RGB"):
    """Returns a picture with a red, a green, a blue and a white corner."""
    return Image.fromarray(CORNERS).convert(mode)


def encoded(image, kind, **options):
    """Returns the picture as Pillow reads it from a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_colours_survive_every_mode(mode):
    # Other colour spaces round.
    np.testing.assert_allclose(to_array(corners(mode)).astype(int), CORNERS, atol=3)


@pytest.mark.parametrize("kind", images.FORMATS)
def test_every_format_is_read_from_a_path(tmp_path, kind):
    path = tmp_path / f"picture.{kind.lower()}"
    big = corners().resize((96, 64), Image.Resampling.NEAREST)
    big.convert("P" if kind == "GIF" else "RGB").save(path, kind)
    for given in (path, str(path)):
        found = to_array(given).astype(int)
        # Two formats are lossy, at the edges most.
        np.testing.assert_allclose(found[4::8, 4::8], np.asarray(big)[4::8, 4::8], atol=20)


def test_grey_is_the_same_in_three_channels():
    expected = np.repeat(GREY[..., None], 3, axis=-1)
    for image in (Image.fromarray(GREY), GREY, GREY[..., None], GREY[None], GREY.astype(np.int64)):
        np.testing.assert_array_equal(to_array(image), expected)
    bits = GREY > 100
    for image in (Image.fromarray(bits), bits):
        np.testing.assert_array_equal(to_array(image)[..., 1], 255 * bits)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_to_eight(dtype):
    deep = (GREY.astype(np.uint32) * 257 + 100).astype(dtype)
    png = encoded(Image.fromarray(deep.astype("<u2")), "PNG")
    assert png.mode.startswith("I")
    for image in (deep, png, encoded(Image.fromarray(deep.astype("<u2")), "TIFF")):
        np.testing.assert_array_equal(to_array(image)[..., 0], GREY)
    assert to_array(np.full((2, 2), 65535, np.uint16)).min() == 255
    wide = Image.fromarray(deep.astype(np.int32))
    assert wide.mode == "I"
    np.testing.assert_array_equal(to_array(wide)[..., 0], GREY)


def test_floating_point_numbers_are_taken_in_zero_to_one_or_as_whole_numbers():
    floats = np.float32(GREY) / 255
    np.testing.assert_array_equal(to_array(floats)[..., 2], floats)
    np.testing.assert_array_equal(to_array(Image.fromarray(floats))[..., 2], floats)
    np.testing.assert_array_equal(to_array(GREY.astype(np.float64))[..., 2], GREY)
    for wrong in (floats - 1, floats * 300, floats * np.nan, GREY.astype(np.int32) * 2):
        with pytest.raises(ImageError, match="0 to 255, or floating point numbers in"):
            to_array(wrong)


def test_what_is_transparent_is_white():
    opacity = np.full((4, 6, 1), 255, np.uint8)
    opacity[:2] = 0
    layered = np.concatenate([CORNERS, opacity], axis=-1)
    expected = np.where(opacity > 0, CORNERS, 255)
    palette = corners("P")
    palette.info["transparency"] = palette.getpixel((0, 0))  # the red of one corner
    grey = Image.fromarray(np.stack([GREY, opacity[..., 0]], -1), "LA")
    np.testing.assert_array_equal(to_array(layered), expected)
    np.testing.assert_array_equal(to_array(Image.fromarray(layered)), expected)
    np.testing.assert_array_equal(to_array(grey)[:2], 255)
    np.testing.assert_array_equal(to_array(grey)[2:, :, 0], GREY[2:])
    assert (to_array(encoded(palette, "PNG"))[0, 0] == 255).all()
    assert (to_array(encoded(palette, "PNG"))[3, 0] == (0, 255, 0)).all()
    np.testing.assert_allclose(to_array(layered / 255), expected / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_exif_data_say(tmp_path, orientation):
    big = corners().resize((96, 64), Image.Resampling.NEAREST)
    # What a camera that is held so would have stored.
    undo = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = big
    for step in undo:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=95, subsampling=0)
    for given in (tmp_path / "photo.jpg", Image.open(tmp_path / "photo.jpg")):
        np.testing.assert_allclose(to_array(given).astype(int), np.asarray(big), atol=10)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_data_that_cannot_be_read_say_nothing(tmp_path):
    corners().save(tmp_path / "photo.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert to_array(tmp_path / "photo.jpg").shape == (4, 6, 3)


def test_arrays_are_channels_last_where_that_can_be():
    assert to_array(np.zeros((3, 5, 7), np.uint8)).shape == (5, 7, 3)
    assert to_array(np.zeros((3, 5, 3), np.uint8)).shape == (3, 5, 3)
    assert to_array(np.zeros((3, 5, 3), np.uint8), "channels_first").shape == (5, 3, 3)
    for shape, layout in (((5, 7, 2), None), ((3, 5, 7), "channels_last"), ((5,), None)):
        with pytest.raises(ImageError, match=r"\[height, width\], or .* got \["):
            to_array(np.zeros(shape, np.uint8), layout)
    with pytest.raises(ValueError, match="input_data_format must be one of channels_last"):
        to_array(CORNERS, "NCHW")


# ---- What is refused -----------------------------------------------------------------------


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_that_claims(width, height):
    """Returns a PNG of some bytes whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(9_500, 9_500), (30_000, 30_000), (2_000_000_000, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_is_far_too_large_is_refused_before_it_is_unpacked(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(*size))
    with pytest.raises(ImageError, match=r"bomb.png is too large .* at most 89,478,485 pixels"):
        to_array(path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_picture_that_is_cut_short_is_refused(tmp_path, kind):
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / "cut"
    Image.fromarray(noise).save(path, kind)
    data = path.read_bytes()
    for length in (len(data) // 2, 30):
        path.write_bytes(data[:length])
        with pytest.raises(ImageError, match=f"{path} is (damaged|not an image)"):
            to_array(path)


def test_what_is_no_picture_is_refused_by_name(tmp_path):
    for name, data in (
        ("empty.png", b""),
        ("text.jpg", b"hello, this is text"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=f"{name} is not an image of one of the formats BMP"):
            to_array(tmp_path / name)
    with pytest.raises(ImageError, match=r"nowhere.png does not exist"):
        to_array(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="not a file"):
        to_array(tmp_path)
    with pytest.raises(ImageError, match="an address: download it"):
        to_array("https://example.org/cat.png")
    with pytest.raises(ImageError, match="must hold numbers"):
        to_array(np.array([["a"]]))


def test_a_flipped_byte_is_refused_or_gives_a_picture(tmp_path):
    random = np.random.RandomState(0)
    noise = Image.fromarray(random.randint(0, 256, (24, 24, 3), np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "WEBP"):
        noise.save(tmp_path / "whole", kind)
        whole = (tmp_path / "whole").read_bytes()
        for position in random.randint(0, len(whole), 40):
            data = bytearray(whole)
            data[position] ^= 1 << random.randint(8)
            (tmp_path / "flipped").write_bytes(data)
            try:
                assert to_array(tmp_path / "flipped").shape[-1] == 3
            except ImageError as error:
                assert "flipped" in str(error)


# ---- Maps of classes -------------------------------------------------------------------------


def test_a_map_of_classes_keeps_its_indices(tmp_path):
    classes = np.arange(24, dtype=np.uint8).reshape(4, 6) * 11
    painted = Image.fromarray(classes, "P")
    painted.putpalette(np.random.RandomState(0).randint(0, 256, 768, np.uint8).tobytes())
    painted.save(tmp_path / "map.png")
    given = (painted, tmp_path / "map.png", classes, classes[..., None], classes[None])
    for each in (*given, classes.astype(np.int64), Image.fromarray(classes)):
        found = to_map(each)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, classes)


def grey_png(bits):
    """Returns a PNG of 2 or 4 bits a pixel that has every value, a row each."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(bytes([0, value << 8 - bits]) for value in range(2**bits))
    header = struct.pack(">IIBBBBB", 1, 2**bits, bits, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_map_of_few_bits_keeps_its_classes(tmp_path, bits):
    (tmp_path / "map.png").write_bytes(grey_png(bits))
    expected = np.arange(2**bits)[:, None]
    for given in (tmp_path / "map.png", Image.open(tmp_path / "map.png")):
        np.testing.assert_array_equal(to_map(given), expected)
    np.testing.assert_array_equal(decode_map(grey_png(bits)), expected)
    assert to_array(tmp_path / "map.png").max() == 255  # as a picture it goes up to white


def test_what_is_no_map_of_classes_is_refused():
    with pytest.raises(ImageError, match="one class|a class a pixel"):
        to_map(corners())
    with pytest.raises(ImageError, match="whole numbers, got float"):
        to_map(np.zeros((2, 2)))
    with pytest.raises(ImageError, match="0 to 255, got -1 to 0"):
        to_map(np.array([[0, -1]]))
