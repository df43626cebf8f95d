"""The image processor: pixels of Hugging Face's, its file, its arguments and its outputs."""

import json
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processing_cases import GOLDEN, picture

import mobilevitv2_jax as mv
from mobilevitv2_jax.errors import ImageError, WeightsError
from mobilevitv2_jax.models.outputs import SemanticSegmenterOutput
from mobilevitv2_jax.models.resize import resize_bilinear
from mobilevitv2_jax.weights import formats

FILE = pathlib.Path(__file__).parent / "golden" / "processing.npz"
PUBLISHED = {  # of apple/mobilevitv2-1.0-imagenet1k-256
    "crop_size": {"height": 256, "width": 256},
    "do_center_crop": True,
    "do_flip_channel_order": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "MobileViTFeatureExtractor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 288},
}
SMALL = {"size": {"shortest_edge": 36}, "crop_size": 32}


@pytest.mark.parametrize("name", GOLDEN)
def test_pixels_are_those_of_hugging_face_to_the_bit(name):
    size, rules = GOLDEN[name]
    expected = np.load(FILE)[name]
    processor = mv.MobileViTImageProcessor(**rules)
    raw = processor(picture(size), do_rescale=False)["pixel_values"]
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(raw, expected[None])
    scaled = processor(Image.fromarray(picture(size))).pixel_values
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, np.float32(expected.astype(np.float64) / 255)[None])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 60), st.integers(8, 60))
def test_any_size_gives_the_crop_and_the_short_side(height, width, edge, crop):
    processor = mv.MobileViTImageProcessor(size=edge, crop_size=crop)
    image = np.full((height, width, 3), 200, np.uint8)
    pixels = processor(image)["pixel_values"]
    assert pixels.shape == (1, crop, crop, 3)
    assert pixels[0, crop // 2, crop // 2, 0] == np.float32(200 / 255)
    whole = processor(image, do_center_crop=False)["pixel_values"].shape[1:3]
    assert min(whole) == edge and max(whole) == edge * max(height, width) // min(height, width)


def test_channels_are_flipped_to_blue_green_red():
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 0] = 255
    pixels = mv.MobileViTImageProcessor(**SMALL)(red)["pixel_values"]
    np.testing.assert_array_equal(pixels[0, 5, 5], [0, 0, 1])
    pixels = mv.MobileViTImageProcessor(**SMALL)(red, do_flip_channel_order=False)["pixel_values"]
    np.testing.assert_array_equal(pixels[0, 5, 5], [1, 0, 0])


def test_normalisation_is_of_red_green_blue_before_the_flip():
    processor = mv.MobileViTImageProcessor(
        **SMALL, do_normalize=True, image_mean=(0.1, 0.2, 0.3), image_std=(1, 2, 4)
    )
    pixels = processor(np.full((40, 40, 3), 255, np.uint8))["pixel_values"]
    np.testing.assert_allclose(pixels[0, 0, 0], [0.7 / 4, 0.8 / 2, 0.9], rtol=1e-6)


def test_images_come_as_paths_pictures_arrays_lists_and_batches(tmp_path):
    array = picture((50, 40))
    image = Image.fromarray(array)
    image.save(tmp_path / "a.png")
    processor = mv.MobileViTImageProcessor(**SMALL)
    expected = processor(image)["pixel_values"]
    assert expected.shape == (1, 32, 32, 3)
    batches = (array[None], [array], (image,), [str(tmp_path / "a.png")], jnp.asarray(array)[None])
    for images in (array, tmp_path / "a.png", array.transpose(2, 0, 1), *batches):
        np.testing.assert_array_equal(processor(images)["pixel_values"], expected)
    many = processor([image, tmp_path / "a.png", array])["pixel_values"]
    np.testing.assert_array_equal(many, np.repeat(expected, 3, axis=0))
    np.testing.assert_array_equal(processor.preprocess(images=image).pixel_values, expected)


def test_tensors_are_numpy_s_or_jax_s_and_others_are_told_what_to_use():
    processor = mv.MobileViTImageProcessor(**SMALL)
    image = picture((50, 40))
    assert isinstance(processor(image)["pixel_values"], np.ndarray)
    assert isinstance(processor(image, return_tensors="np")["pixel_values"], np.ndarray)
    assert isinstance(processor(image, return_tensors="jax")["pixel_values"], jax.Array)
    for kind in ("pt", "tf"):
        with pytest.raises(ValueError, match=r'"np" or "jax", got .*torch.from_numpy'):
            processor(image, return_tensors=kind)
    sizes = [picture((50, 40)), picture((40, 60))]
    listed = processor(sizes, do_center_crop=False)["pixel_values"]
    assert [x.shape for x in listed] == [(45, 36, 3), (36, 54, 3)]
    with pytest.raises(ValueError, match=r"\(36, 54\), \(45, 36\) are not one array: crop"):
        processor(sizes, do_center_crop=False, return_tensors="np")


def test_maps_of_classes_are_cut_like_their_images():
    classes = np.zeros((40, 60), np.uint8)
    classes[:, 30:] = 7
    classes[:2] = 255
    processor = mv.MobileViTImageProcessor(**SMALL)
    labels = processor([picture((40, 60))], [classes])["labels"]
    assert labels.shape == (1, 32, 32) and labels.dtype == np.int64
    assert set(np.unique(labels)) <= {0, 7, 255} and (labels[0, 10] == [0] * 16 + [7] * 16).all()
    reduced = processor(picture((40, 60)), classes, do_reduce_labels=True)["labels"]
    assert (reduced[0, 10] == [255] * 16 + [6] * 16).all()
    assert classes.max() == 255 and (classes == 0).any()  # the user's own array is left alone
    with pytest.raises(ValueError, match="one map for each image, got 1 for 2"):
        processor([classes, classes], [classes])


def test_the_published_file_is_read_and_written_back(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    processor = mv.MobileViTImageProcessor.from_pretrained(tmp_path)
    assert processor.size == {"shortest_edge": 288} and processor.resample == 2
    assert processor(picture((300, 500)))["pixel_values"].shape == (1, 256, 256, 3)
    processor.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert again.items() >= {**PUBLISHED, "image_processor_type": "MobileViTImageProcessor"}.items()
    file = tmp_path / "again" / "preprocessor_config.json"
    assert mv.MobileViTImageProcessor.from_pretrained(file).to_dict() == processor.to_dict()
    changed = mv.MobileViTImageProcessor.from_pretrained(tmp_path, do_flip_channel_order=False)
    assert not changed.do_flip_channel_order and changed.resample == 2


def test_a_run_directory_has_its_processor_beside_the_model(tmp_path):
    mv.MobileViTImageProcessor(size=40).save_pretrained(tmp_path / "model")
    found = mv.MobileViTImageProcessor.from_pretrained(tmp_path)
    assert found.size == {"shortest_edge": 40}


def test_unknown_entries_are_kept_and_named(tmp_path):
    values = {**PUBLISHED, "do_pad": False, "data_format": "channels_first", "resampel": 3}
    with pytest.warns(UserWarning, match="without effect: resampel \\(did you mean 'resample'"):
        processor = mv.MobileViTImageProcessor.from_dict(values)
    assert processor.to_dict().items() >= {"do_pad": False, "resampel": 3, "resample": 2}.items()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resample": 7}, "resample must be one of Pillow's filters"),
        ({"size": {"shortest": 7}}, "size must be pixels"),
        ({"size": 0}, "size must be pixels"),
        ({"crop_size": {"shortest_edge": 7}}, "crop_size must be a height and a width"),
        ({"do_resize": "yes"}, "do_resize must be True or False, got 'yes'"),
        ({"rescale_factor": "1/255"}, "rescale_factor must be a number"),
        ({"image_mean": (0, 1)}, "image_mean must be a number, or one for each"),
        ({"image_std": 0}, "image_std must be different from 0"),
    ],
)
def test_values_that_are_not_allowed_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        mv.MobileViTImageProcessor(**options)


def test_an_unknown_argument_names_the_nearest():
    with pytest.raises(TypeError, match="did you mean 'crop_size'"):
        mv.MobileViTImageProcessor(cropsize=3)


def test_what_cannot_be_had_is_told(tmp_path):
    processor = mv.MobileViTImageProcessor(do_convert_rgb=False)
    with pytest.raises(ImageError, match="RGB alone"):
        processor(Image.fromarray(picture((9, 9))).convert("L"))
    assert processor(Image.fromarray(picture((9, 9))))["pixel_values"].shape[-1] == 3
    with pytest.raises(ValueError, match='must be "channels_last"'):
        processor(picture((9, 9)), data_format="channels_first")
    with pytest.raises(AttributeError, match="no 'labels', only pixel_values"):
        processor(picture((9, 9))).labels  # noqa: B018
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(ImageError, match="must hold an object, got list"):
        mv.MobileViTImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ImageError, match="not valid JSON"):
        mv.MobileViTImageProcessor.from_pretrained(tmp_path)


def test_scores_become_maps_of_the_sizes_that_are_asked_for(monkeypatch):
    logits = np.random.RandomState(0).randn(2, 5, 7, 4).astype(np.float32)
    output = SemanticSegmenterOutput(logits=jnp.asarray(logits))
    processor = mv.MobileViTImageProcessor()
    plain = processor.post_process_semantic_segmentation(output)
    np.testing.assert_array_equal(plain, logits.argmax(-1))
    sizes = [(50, 60), (3, 9)]
    # In bands of a row as in one piece.
    for band in (1, 1 << 24):
        monkeypatch.setattr("mobilevitv2_jax.processing._BAND", band)
        maps = processor.post_process_semantic_segmentation(output, target_sizes=np.array(sizes))
        for x, size, found in zip(logits, sizes, maps, strict=True):
            resized = resize_bilinear(jnp.asarray(x[None]), size, align_corners=False)[0]
            np.testing.assert_array_equal(found, resized.argmax(-1))
    both = processor.post_process_semantic_segmentation(output, sizes, True)
    assert both[0].segmentation_scores.shape == (50, 60, 4)
    np.testing.assert_array_equal(both[1].segmentation, maps[1])
    with pytest.raises(ValueError, match="one for each of 2 images, got 1"):
        processor.post_process_semantic_segmentation(output, [(3, 9)])


def test_the_processor_loads_no_jax():
    program = """
import sys, numpy, mobilevitv2_jax as mv
mv.MobileViTImageProcessor()(numpy.zeros((9, 9, 3), numpy.uint8))
assert not {"jax", "flax", "cv2", "matplotlib"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_weights_without_a_file_of_their_own_bring_the_rules_of_their_source(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="holds no weights"):
        mv.MobileViTImageProcessor.from_pretrained(tmp_path)
    rules = {**PUBLISHED, "resample": 3, "do_flip_channel_order": False}
    stored = types.SimpleNamespace(preprocessor=rules)
    monkeypatch.setattr(formats, "read", lambda path: stored)
    processor = mv.MobileViTImageProcessor.from_pretrained(tmp_path)
    assert processor.size == {"shortest_edge": 288} and processor.resample == 3
    assert not processor.do_flip_channel_order
