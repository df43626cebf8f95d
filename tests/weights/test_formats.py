"""The forms of timm and ml-cvnets: what they bring, what they are given, and what is refused."""

import json
import warnings

import numpy as np
import pytest
from reference_weights import reference_weights, shapes_of

import mobilevitv2_jax as mv
from mobilevitv2_jax import class_names
from mobilevitv2_jax.errors import WeightsError
from mobilevitv2_jax.models.config import WIDTHS
from mobilevitv2_jax.models.initializers import Blank
from mobilevitv2_jax.processing import MobileViTImageProcessor
from mobilevitv2_jax.weights import formats, images, pretrained, shapes, tensors, torch_writer

CLASSIFIER, SEGMENTER = mv.MobileViTV2ForImageClassification, mv.MobileViTV2ForSemanticSegmentation


def make(cls=CLASSIFIER, **fields):
    config = mv.MobileViTV2Config(**{"width_multiplier": 0.5, "num_labels": 3, **fields})
    model = cls(config, rngs=Blank())
    mv.weights.load_state_dict(
        model, reference_weights(shapes_of(mv.weights.state_dict(model, "cvnets"))), "cvnets"
    )
    model.eval()
    return model


def assert_same(left, right):
    ours, theirs = (mv.weights.state_dict(model, "cvnets") for model in (left, right))
    assert ours.keys() == theirs.keys()
    for key, x in ours.items():
        np.testing.assert_array_equal(x, theirs[key], err_msg=key)


@pytest.fixture(scope="module")
def classifier():
    return make(id2label={0: "cat", 1: "dog", 2: "cow"}, odd_size_rule="resize_back")


@pytest.mark.parametrize("format", ["timm", "cvnets"])
def test_a_classifier_comes_back_to_the_bit_with_our_own_fields(format, classifier, tmp_path):
    with pytest.warns(UserWarning, match="odd_size_rule='resize_back'"):
        classifier.save_pretrained(tmp_path, format=format)
    model = CLASSIFIER.from_pretrained(tmp_path)
    assert_same(model, classifier)
    assert model.config == classifier.config


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (CLASSIFIER, {"num_labels": 1000}),
        (SEGMENTER, {"num_labels": 21, "output_stride": 16, "auxiliary_head": True}),
        (SEGMENTER, {"num_labels": 150, "segmentation_head": "pspnet", "output_stride": 8}),
    ],
    ids=["classifier", "deeplabv3", "pspnet"],
)
def test_all_of_the_model_is_inferred_from_shapes(width, cls, fields):
    config = mv.MobileViTV2Config(width_multiplier=width, **fields)
    arrays = {
        key.removeprefix("encoder."): x
        for key, x in mv.weights.state_dict(cls(config, rngs=Blank()), "cvnets").items()
    }
    found = mv.MobileViTV2Config(**shapes.infer(arrays, "cvnets")[0])
    for name in ("stage_channels", "attention_channels", *fields):
        assert getattr(found, name) == getattr(config, name)
    assert found.width_multiplier == width


def test_a_file_of_the_original_release_brings_its_rules_and_the_names_of_its_classes(tmp_path):
    model = make(SEGMENTER, num_labels=21, output_stride=16, auxiliary_head=True)
    torch_writer.write(tmp_path / "deeplabv3.pt", mv.weights.state_dict(model, "cvnets"))
    found = pretrained.load(tmp_path / "deeplabv3.pt")
    assert type(found.model) is SEGMENTER
    assert_same(found.model, model)
    config = found.model.config
    assert (config.dilation_rule, config.odd_size_rule) == ("cvnets", "resize")
    assert config.auxiliary_head and config.align_corners and config.output_stride == 16
    assert list(config.id2label.values()) == list(class_names.load("voc"))
    assert found.stored.preprocessor == images.rules(512, None, "bicubic")
    with pytest.warns(UserWarning, match="not used.*\n  seg_head.aux_head.0.block.conv.weight"):
        model = SEGMENTER.from_pretrained(tmp_path / "deeplabv3.pt", auxiliary_head=False)
    assert model.auxiliary_head is None


def test_the_number_of_classes_tells_the_rates_only_of_known_data_sets(tmp_path):
    model = make(SEGMENTER, num_labels=4, segmentation_head="pspnet")
    torch_writer.write(tmp_path / "mine.pt", mv.weights.state_dict(model, "cvnets"))
    with pytest.warns(UserWarning, match=r"output_stride=16 .* assumed for its 4 classes"):
        SEGMENTER.from_pretrained(tmp_path / "mine.pt")


def test_a_file_of_timms_alone_is_read_by_its_shapes(classifier, tmp_path):
    tensors.write_safetensors(
        tmp_path / "mobilevitv2_050.safetensors", mv.weights.state_dict(classifier, "timm")
    )
    found = pretrained.load(tmp_path / "mobilevitv2_050.safetensors")
    assert_same(found.model, classifier)
    assert found.model.config.width_multiplier == 0.5
    assert found.stored.preprocessor == images.rules(288, 256, "bicubic")


@pytest.mark.parametrize("source", ["hf", "timm", "cvnets"])
def test_a_thousand_classes_without_names_are_image_nets(source, tmp_path):
    config = mv.MobileViTV2Config(width_multiplier=0.5, num_labels=1000)
    model = CLASSIFIER(config, rngs=Blank())
    torch_writer.write(tmp_path / "x.pt", mv.weights.state_dict(model, source))
    found = formats.read(tmp_path / "x.pt")
    assert found.config.id2label[0] == "tench, Tinca tinca"
    assert found.config.id2label[281] == "tabby, tabby cat"


def test_class_names_are_as_many_as_the_classes():
    assert [len(class_names.load(name)) for name in class_names.DATA_SETS] == [1000, 21, 150]
    assert class_names.guess(151, segmentation=True)[:2] == ("background", "wall")
    assert class_names.guess(21, segmentation=False) is None
    with pytest.raises(ValueError, match="one of imagenet1k, voc, ade20k, got 'coco'"):
        class_names.load("coco")


# ---- Image rules -----------------------------------------------------------------------------


@pytest.mark.parametrize(("resize", "crop"), [(288, 256), (384, 384), (224, 224), (239, 201)])
def test_timms_rules_come_back(resize, crop):
    rules = images.rules(resize, crop, "bilinear")
    assert images.from_timm(images.to_timm(rules)) == rules


def test_image_rules_in_words_of_others_are_those_of_the_published_models():
    rules = images.rules(288, 256, "bicubic")
    assert images.to_timm(rules)["crop_pct"] == 0.888
    assert images.to_cvnets(rules, segmentation=False) == {
        "resize": {"enable": True, "size": 288, "interpolation": "bicubic"},
        "center_crop": {"enable": True, "size": 256},
    }
    MobileViTImageProcessor.from_dict(rules)


@pytest.mark.parametrize(
    ("format", "changes", "named"),
    [
        ("timm", {"resample": 0}, "resample=0"),
        ("timm", {"do_center_crop": False}, "do_center_crop=False"),
        ("timm", {"size": {"height": 256, "width": 256}}, "size="),
        ("timm", {"crop_size": {"height": 320, "width": 320}}, "crop_size="),
        ("timm", {"do_rescale": False}, "rescale_factor"),
        ("cvnets", {"do_normalize": True}, "do_normalize=True"),
        ("cvnets", {"resample": 1}, "resample=1"),
    ],
)
def test_a_rule_that_the_target_cannot_express_is_refused_by_name_and_nothing_is_written(
    format, changes, named, classifier, tmp_path
):
    rules = {**images.rules(288, 256, "bicubic"), **changes}
    with pytest.raises(WeightsError, match=named), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier.save_pretrained(tmp_path / "x", format=format, processor=rules)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("format", ["timm", "cvnets"])
def test_a_model_that_takes_bgr_is_written_to_take_rgb(format, tmp_path):
    model = make()
    processor = MobileViTImageProcessor(size=288, crop_size=256, do_flip_channel_order=True)
    model.save_pretrained(tmp_path, format=format, processor=processor)
    written = tensors.read(tensors.find(tmp_path))
    stem = {"timm": "stem.conv.weight", "cvnets": "conv_1.block.conv.weight"}[format]
    own = mv.weights.state_dict(model, format)
    np.testing.assert_array_equal(written[stem], own[stem][:, ::-1])
    assert written.keys() == own.keys()
    assert all((written[key] == own[key]).all() for key in own.keys() - {stem})
    again = MobileViTImageProcessor.from_pretrained(tmp_path)
    assert not again.do_flip_channel_order and again.size == {"shortest_edge": 288}


@pytest.mark.parametrize(
    ("format", "cls", "fields", "named"),
    [
        ("timm", CLASSIFIER, {"width_multiplier": 0.25}, "width_multiplier must be one of 0.5"),
        ("timm", SEGMENTER, {}, "timm has no MobileViTV2 for segmentation"),
        ("hf", SEGMENTER, {"segmentation_head": "pspnet"}, 'format="cvnets" holds it'),
        ("cvnets", CLASSIFIER, {"n_attn_blocks": (1, 1, 1)}, "n_attn_blocks must be"),
        ("cvnets", CLASSIFIER, {"hidden_act": "gelu"}, "hidden_act must be swish"),
        ("tim", CLASSIFIER, {}, "did you mean 'timm'"),
    ],
)
def test_a_model_that_the_target_does_not_have_is_refused(format, cls, fields, named, tmp_path):
    config = mv.MobileViTV2Config(**{"width_multiplier": 0.5, **fields})
    with pytest.raises(WeightsError, match=named):
        cls(config, rngs=Blank()).save_pretrained(tmp_path / "x", format=format)
    assert not (tmp_path / "x").exists()


def test_saving_for_hugging_face_leaves_the_auxiliary_head_out_and_says_so(tmp_path):
    model = make(SEGMENTER, auxiliary_head=True, odd_size_rule="drop")
    with pytest.warns(UserWarning, match="the auxiliary head is left out"):
        model.save_pretrained(tmp_path)
    assert SEGMENTER.from_pretrained(tmp_path).auxiliary_head is None


def test_the_config_for_the_original_release_tells_model_and_images(tmp_path):
    model = make(SEGMENTER, num_labels=21, output_stride=16)
    rules = images.rules(512, None, "bicubic")
    model.save_pretrained(tmp_path, format="cvnets", processor=rules)
    text = (tmp_path / "config.yaml").read_text()
    for line in ("    n_classes: 21", '    seg_head: "deeplabv3"', "    size: 512"):
        assert f"{line}\n" in text
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mobilevitv2"


def test_timms_arguments_that_make_another_model_are_refused(classifier, tmp_path):
    with pytest.warns(UserWarning):
        classifier.save_pretrained(tmp_path, format="timm")
    values = json.loads((tmp_path / "config.json").read_text())
    for key, value in (("act_layer", "gelu"), ("global_pool", "max")):
        changed = {**values, "model_args": {key: value}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(WeightsError, match=f"model_args that make another model: {key}"):
            CLASSIFIER.from_pretrained(tmp_path)


def test_timms_image_rules_that_cannot_be_used_are_refused_by_their_file(classifier, tmp_path):
    with pytest.warns(UserWarning):
        classifier.save_pretrained(tmp_path, format="timm")
    values = json.loads((tmp_path / "config.json").read_text())
    values["pretrained_cfg"]["std"] = [0.5, 0, 0.5]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="config.json: image_std must be different from 0"):
        formats.read(tmp_path)
