"""Predictions for pictures: what the model says of what its processor makes of them."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from processing_cases import picture

import mobilevitv2_jax as mv
from mobilevitv2_jax.errors import ImageError, WeightsError
from mobilevitv2_jax.evaluation import explain
from mobilevitv2_jax.evaluation.predict import Predictor

FIELDS = {
    "width_multiplier": 0.25,
    "n_attn_blocks": (1, 1, 1),
    "base_attn_unit_dims": (16, 24, 32),
    "aspp_out_channels": 16,
    "depthwise": "convolution",  # compiles fastest
    "id2label": {0: "background", 1: "cat", 2: "dog", 3: "cow"},
}
SIZES = [(50, 70), (70, 50), (40, 40), (90, 30)]


Logits = collections.namedtuple("Logits", "logits")


def make(cls, **fields):
    model = cls(mv.MobileViTV2Config(**{**FIELDS, **fields}), rngs=nnx.Rngs(0))
    model.eval()
    return model


@pytest.fixture(scope="module")
def classifier():
    processor = mv.MobileViTImageProcessor(size=36, crop_size=32)
    return Predictor(make(mv.MobileViTV2ForImageClassification), processor, top_k=3)


@pytest.fixture(scope="module")
def segmenter():
    processor = mv.MobileViTImageProcessor(size=36, crop_size=32, do_flip_channel_order=False)
    model = make(mv.MobileViTV2ForSemanticSegmentation, output_stride=16)
    return Predictor(model, processor, explain=True)


def computed(predictor, function, pixels):
    """Returns the first output of a predictor's program for a batch that it takes as it is."""
    return np.asarray(function(predictor._parameters, predictor._statistics, pixels)[0])


def test_a_classifier_names_its_best_classes_of_every_picture_in_order(classifier, tmp_path):
    processor = classifier._processor
    images = [picture(size) for size in SIZES]
    Image.fromarray(images[1]).save(tmp_path / "a.png")
    given = [images[0], tmp_path / "a.png", Image.fromarray(images[2]), images[3] / 255]
    predictions = list(classifier(given))
    assert len(predictions) == 4 and not classifier.segments
    shares = computed(classifier, classifier._scores, processor(images)["pixel_values"])
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-6)
    for prediction, expected in zip(predictions, shares, strict=True):
        order = np.argsort(-expected)[:3]
        assert [found.index for found in prediction.found] == list(order)
        assert [found.label for found in prediction.found] == [FIELDS["id2label"][i] for i in order]
        assert [found.share for found in prediction.found] == list(expected[order])
        assert prediction.classes is None and prediction.heat == ()
    # What the model saw, in colours that a person sees.
    seen = processor(images[0], do_rescale=False, do_flip_channel_order=False)["pixel_values"]
    np.testing.assert_array_equal(predictions[0].image, seen[0])
    assert predictions[0].to_dict()["classes"][0].keys() == {"label", "index", "probability"}


def test_a_picture_that_cannot_be_read_is_an_error_in_its_place(classifier, tmp_path, monkeypatch):
    batches = []
    monkeypatch.setattr(
        classifier, "_predict", lambda arrays: batches.append(len(arrays)) or arrays
    )
    (tmp_path / "bad.png").write_bytes(b"no picture")
    images = [tmp_path / "bad.png", *[picture((9, 9))] * 4, tmp_path / "nowhere.png"]
    first, *others, last = classifier(images, batch_size=2)
    assert isinstance(first, ImageError) and "bad.png" in str(first)
    assert isinstance(last, ImageError) and "nowhere.png" in str(last)
    assert len(others) == 4 and batches == [1, 2, 1]
    assert list(classifier([])) == []


@pytest.mark.slow
def test_a_segmenter_gives_every_pixel_of_the_whole_picture_a_class(segmenter):
    processor = segmenter._processor
    images = [picture((64, 70)), picture((50, 70))]
    predictions = list(segmenter(images))
    assert segmenter.segments
    # The short side becomes that of the crop, and both sides are multiples of 32.
    whole = processor(images, do_center_crop=False, size=(32, 32))["pixel_values"]
    logits = computed(segmenter, segmenter._maps, whole)
    sizes = [image.shape[:2] for image in images]
    expected = processor.post_process_semantic_segmentation(Logits(logits), sizes)
    for image, prediction, classes in zip(images, predictions, expected, strict=True):
        np.testing.assert_array_equal(prediction.classes, classes)
        np.testing.assert_array_equal(prediction.image, image)
        shares = {found.index: found.share for found in prediction.found}
        assert sum(shares.values()) == pytest.approx(1)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        for index, share in shares.items():
            assert share == pytest.approx((classes == index).mean())
        assert [found for found, _ in prediction.heat] == list(prediction.found)
    assert predictions[0].to_dict()["classes"][0].keys() == {"label", "index", "share"}


def test_a_segmenter_s_sizes_are_few_and_bounded(segmenter):
    sizes = {
        (32, 32): {"height": 32, "width": 32},
        (480, 640): {"height": 32, "width": 32},  # 43 is nearer to 32 than to 64
        (1000, 1900): {"height": 32, "width": 64},
        (20, 2000): {"height": 32, "width": 128},  # the long side ends at four times the short one
        (1, 1): {"height": 32, "width": 32},
    }
    for size, expected in sizes.items():
        assert segmenter._size(np.zeros((*size, 3))) == expected


def test_pictures_of_one_shape_are_computed_together_and_filled_up_to_a_power_of_two(classifier):
    calls = []

    def function(parameters, statistics, batch):
        calls.append(batch.shape)
        return batch.sum((1, 2, 3)), jnp.arange(len(batch))

    pixels = [np.full((size, 4, 3), number) for number, size in enumerate([2, 5, 2, 2, 5])]
    sums = [float(total) for total, _ in classifier._run(function, pixels)]
    assert sorted(calls) == [(2, 5, 4, 3), (4, 2, 4, 3)]
    assert sums == [0, 60, 48, 72, 240]


def test_what_names_no_classes_is_refused():
    for fields, said in (({"num_labels": 0, "id2label": None}, "no head"), ({}, "regression")):
        model = object.__new__(mv.MobileViTV2ForImageClassification)
        config = mv.MobileViTV2Config(**{**FIELDS, **fields}, problem_type="regression")
        vars(model)["config"] = config
        with pytest.raises(WeightsError, match=said):
            Predictor(model, mv.MobileViTImageProcessor())
    backbone = types.SimpleNamespace(config=mv.MobileViTV2Config())
    with pytest.raises(WeightsError, match="no head"):
        Predictor(backbone, mv.MobileViTImageProcessor())


# ---- Grad-CAM --------------------------------------------------------------------------------


def halved(x):
    batch, height, width, channels = x.shape
    if height == 1:
        return x
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class Backbone:
    """Halves the map at every stage, without weights."""

    def stem(self, x):
        return x

    stages = ((lambda x, rngs: halved(x),),) * 5

    def feature_maps(self, x):
        maps = []
        for (block,) in self.stages:
            x = block(x, None)
            maps.append(x)
        return tuple(maps)


class Colours:
    """Class 0 is red and not green, class 1 green and not red."""

    backbone = Backbone()

    @staticmethod
    def classifier(x):
        return x @ jnp.array([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])


@pytest.mark.parametrize(("side", "cells"), [(512, 16), (256, 8), (224, 7), (64, 8), (8, 4)])
def test_the_heat_is_of_the_deepest_map_that_shows_places(side, cells):
    pixels = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    _, heat = jax.eval_shape(lambda x: explain.class_activation(Colours(), x), pixels)
    assert heat.shape == (2, cells, cells)


@pytest.mark.slow
def test_the_heat_is_where_the_best_class_has_its_evidence():
    side, cells = 64, 8
    pixels = np.zeros((2, side, side, 3), np.float32)
    pixels[0, : side // 2, : side // 2, 0] = 1  # red in the upper left corner
    pixels[0, side // 2 :, :, 1] = 0.2  # a little green below
    pixels[1, :, side // 2 :, 1] = 1  # green on the right
    logits, heat = jax.jit(lambda x: explain.class_activation(Colours(), x))(pixels)
    assert heat.shape == (2, cells, cells)
    np.testing.assert_array_equal(logits.argmax(-1), [0, 1])
    half, corner = cells // 2, max(1, cells // 4)
    assert (heat[0, :corner, :corner] > 0).all() and (heat[1, :, -corner:] > 0).all()
    assert (heat[0, -corner:] == 0).all()  # what speaks against it is no evidence
    assert (heat[1, :, :corner] == 0).all() and heat[0, :half].sum() > 0


@pytest.mark.slow
def test_the_heat_of_the_real_model_is_its_class_activation_map():
    model = make(mv.MobileViTV2ForImageClassification)
    pixels = jnp.asarray(np.random.RandomState(0).rand(2, 224, 256, 3), jnp.float32)
    logits, heat = jax.jit(lambda x: explain.class_activation(model, x))(pixels)
    output = jax.jit(lambda x: model(x, output_hidden_states=True))(pixels)
    np.testing.assert_allclose(logits, output.logits, rtol=1e-4, atol=1e-5)
    # Behind the last map there is but a mean and a matrix: Grad-CAM is CAM (arXiv 1512.04150).
    features = output.hidden_states[-1]
    columns = model.classifier.kernel.get_value().T[output.logits.argmax(-1)]
    expected = jnp.maximum(jnp.einsum("bhwc,bc->bhw", features, columns), 0)
    expected /= features.shape[1] * features.shape[2]
    assert heat.shape == (2, 8, 8)
    np.testing.assert_allclose(heat, expected, rtol=1e-3, atol=1e-6)
