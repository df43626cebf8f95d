"""The image processor against Hugging Face's Pillow backend: equal to the bit."""

import importlib
import json
import pathlib

import numpy as np
import pytest
from oracle.comparison import torch
from PIL import Image
from processing_cases import GOLDEN, RULES, SIZES, picture
from reference_torch import transformers

import mobilevitv2_jax as mv
from mobilevitv2_jax.models.outputs import SemanticSegmenterOutput

pytestmark = pytest.mark.oracle


FILE = pathlib.Path(__file__).parents[1] / "golden" / "processing.npz"


def their_processor(**options):
    module = importlib.import_module("transformers.models.mobilevit.image_processing_pil_mobilevit")
    return module.MobileViTImageProcessorPil(**options)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_equal_to_the_bit(size, rules):
    image = Image.fromarray(picture(size))
    ours = mv.MobileViTImageProcessor(**RULES[rules])(image)["pixel_values"]
    theirs = np.stack(their_processor(**RULES[rules])(image)["pixel_values"])
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs.transpose(0, 2, 3, 1))


def test_floats_in_zero_to_one_are_equal_where_theirs_are_not_scaled_twice():
    image = np.random.RandomState(0).rand(300, 400, 3).astype(np.float32)
    for options in ({}, {"do_resize": False}):
        theirs = their_processor(do_rescale=False, **options)(image)["pixel_values"][0]
        for rescale in (True, False):
            ours = mv.MobileViTImageProcessor(do_rescale=rescale, **options)(image)
            np.testing.assert_array_equal(ours["pixel_values"][0], theirs.transpose(1, 2, 0))


def test_normalisation_is_that_of_their_other_processors():
    normalize = importlib.import_module("transformers.image_transforms").normalize
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    processor = mv.MobileViTImageProcessor(do_flip_channel_order=False)
    image = picture((300, 400))
    plain = processor(image)["pixel_values"][0]
    ours = processor(image, do_normalize=True, image_mean=mean, image_std=deviation)
    theirs = normalize(plain.transpose(2, 0, 1), mean, deviation)
    np.testing.assert_array_equal(ours["pixel_values"][0], theirs.transpose(1, 2, 0))


@pytest.mark.parametrize("reduce", [False, True])
def test_maps_of_classes_are_equal(reduce):
    random = np.random.RandomState(0)
    image = picture((300, 400))
    classes = random.randint(0, 256, (300, 400)).astype(np.uint8)
    options = {"do_reduce_labels": reduce, **RULES["published classifiers"]}
    ours = mv.MobileViTImageProcessor(**options)([image], [classes])["labels"]
    theirs = their_processor(**options)([image], [classes.copy()])["labels"][0]
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours[0], theirs)


@pytest.mark.parametrize("rules", RULES)
def test_the_file_is_the_same_and_each_reads_that_of_the_other(tmp_path, rules):
    ours, theirs = mv.MobileViTImageProcessor(**RULES[rules]), their_processor(**RULES[rules])
    assert ours.to_dict() == json.loads(theirs.to_json_string())
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    assert (
        mv.MobileViTImageProcessor.from_pretrained(tmp_path / "theirs").to_dict() == ours.to_dict()
    )
    again = type(theirs).from_pretrained(tmp_path / "ours")
    assert again.to_dict() == theirs.to_dict()
    read = [
        (tmp_path / name / "preprocessor_config.json").read_text() for name in ("ours", "theirs")
    ]
    assert read[0] == read[1]


def test_scores_and_maps_are_upsampled_as_theirs():
    logits = np.random.RandomState(0).randn(3, 13, 17, 21).astype(np.float32)
    output = SemanticSegmenterOutput(logits=logits)
    tensor = torch.from_numpy(logits.transpose(0, 3, 1, 2))
    reference = transformers.modeling_outputs.SemanticSegmenterOutput(logits=tensor)
    ours, theirs = mv.MobileViTImageProcessor(), their_processor()
    sizes = [(50, 60), (13, 17), (7, 200)]
    for targets in (sizes, None):
        arguments = {"target_sizes": targets, "return_segmentation_scores": True}
        mine = ours.post_process_semantic_segmentation(output, **arguments)
        others = theirs.post_process_semantic_segmentation(reference, **arguments)
        maps = ours.post_process_semantic_segmentation(output, targets)
        for a, b, classes in zip(mine, others, maps, strict=True):
            # Theirs takes the positions in float32: up to 2e-6 of a pixel at these sizes.
            scores = b.segmentation_scores.numpy().transpose(1, 2, 0)
            np.testing.assert_allclose(a.segmentation_scores, scores, atol=1e-5, rtol=0)
            np.testing.assert_array_equal(a.segmentation, b.segmentation.numpy())
            np.testing.assert_array_equal(classes, a.segmentation)
            assert classes.dtype == np.int64


def test_the_stored_pixels_are_theirs():
    stored = np.load(FILE)
    assert set(stored) == set(GOLDEN)
    for name, (size, rules) in GOLDEN.items():
        pixels = their_processor(**rules, do_rescale=False)(picture(size))["pixel_values"][0]
        np.testing.assert_array_equal(stored[name], pixels.transpose(1, 2, 0))
